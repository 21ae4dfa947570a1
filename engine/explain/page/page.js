"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const { cells, references, result } = data;
const picture = find("picture");

// Every table of cells is base64 of little-endian numbers, row by row.
function numbers(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Kind(bytes.buffer);
}
const of = {
  reference: numbers(cells.reference, Uint16Array),
  scale: numbers(cells.scale, Uint8Array),
  share: numbers(cells.share, Uint8Array),
  relevance: numbers(cells.relevance, Float32Array),
  x: numbers(cells.x, Float32Array),
  y: numbers(cells.y, Float32Array),
};
const percent = (share) => `${Math.round(100 * share)} %`;

document.title = data.title;
find("title").textContent = data.title;
find("facts").textContent = data.facts;
find("notes").textContent = data.notes;
find("notes").hidden = !data.notes;
find("result").src = result.sr;
find("bicubic").src = result.bicubic;
for (const img of [find("result"), find("bicubic")]) [img.width, img.height] = result.shown;
// Small results are enlarged to twice their size at most, and none is higher than the window.
const [shownWidth, shownHeight] = result.shown;
find("stage").style.maxWidth = `min(${2 * shownWidth}px, ${(85 * shownWidth) / shownHeight}vh)`;

// ---- the slider, and what lies over the result

find("slider").addEventListener("input", (event) => find("stage").style.setProperty("--split", `${event.target.value}%`));

function swatch(colour) {
  const square = document.createElement("i");
  square.style.background = colour;
  return square;
}

function keyEntry(colour, text) {
  const entry = document.createElement("span");
  entry.append(...(colour ? [swatch(colour)] : []), text);
  return entry;
}

const keys = {
  "": () => [],
  origin: () => data.legend.map(({ label, colour, share }) => keyEntry(colour, `${label} ${percent(share)}`))
    .concat(keyEntry("", "paler: others weigh too")),
  relevance: () => {
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.background = `linear-gradient(90deg, ${data.relevance.colours.join(", ")})`;
    return [keyEntry("", `relevance ${data.relevance.low.toFixed(2)}`), bar, keyEntry("", data.relevance.high.toFixed(2))];
  },
  matched: () => [keyEntry("", "every LR pixel replaced by the 4x4 reference pixels at its match")],
};

find("overlays").addEventListener("change", (event) => {
  const which = event.target.value;
  const overlay = find("overlay");
  overlay.hidden = !which;
  overlay.className = which;
  if (which) overlay.src = data.overlays[which];
  find("right-tag").textContent = event.target.nextElementSibling.textContent;
  find("key").replaceChildren(...keys[which]());
});

// ---- the place pointed at

let place = null;
let held = false;

function closeUp(canvas, img, shown, full, x, y, side) {
  const context = canvas.getContext("2d");
  const scale = shown[0] / full[0];
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(img, (x - side / 2) * scale, (y - side / 2) * scale, side * scale, side * scale, 0, 0, canvas.width, canvas.height);
}

function show(col, row) {
  col = Math.max(0, Math.min(cells.cols - 1, col));
  row = Math.max(0, Math.min(cells.rows - 1, row));
  place = [col, row];
  const i = row * cells.cols + col;
  const reference = references[of.reference[i]];
  const factor = data.factors[of.scale[i]];
  const left = (col + 0.5) / cells.cols;
  const top = (row + 0.5) / cells.rows;
  const spot = find("place");
  spot.hidden = false;
  spot.classList.toggle("held", held);
  spot.style.left = percentOf(left);
  spot.style.top = percentOf(top);

  const text = `From ${reference.name} at (${Math.round(of.x[i])}, ${Math.round(of.y[i])}), ` +
    `at scale ${factor.toFixed(2)}: relevance ${of.relevance[i].toFixed(2)}, ${of.share[i]} % of the weight here.`;
  find("text").textContent = text;
  const marker = find("marker");
  marker.hidden = false;
  marker.style.left = percentOf(of.x[i] / reference.width);
  marker.style.top = percentOf(of.y[i] / reference.height);
  find("name").textContent = `${reference.name}, ${reference.width}x${reference.height}`;
  const img = find("reference");
  const draw = () => {
    if (place[0] !== col || place[1] !== row) return;
    closeUp(find("here"), find("result"), result.shown, result.full, left * result.full[0], top * result.full[1], 48);
    closeUp(find("there"), img, reference.shown, [reference.width, reference.height], of.x[i], of.y[i], 48 / factor);
  };
  if (img.src !== reference.picture) {
    img.src = reference.picture;
    img.alt = reference.name;
  }
  // Neither picture may be there yet.
  Promise.all([img.decode(), find("result").decode()]).then(draw, () => {});
}

const percentOf = (share) => `${100 * share}%`;

function cellAt(event) {
  const box = picture.getBoundingClientRect();
  return [
    Math.floor(((event.clientX - box.left) / box.width) * cells.cols),
    Math.floor(((event.clientY - box.top) / box.height) * cells.rows),
  ];
}

picture.addEventListener("pointermove", (event) => held || show(...cellAt(event)));
picture.addEventListener("click", (event) => {
  held = event.pointerType === "mouse" && !held;
  show(...cellAt(event));
});
picture.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  held = true;
  const stride = event.shiftKey ? 8 : 1;
  const [col, row] = place ?? [Math.floor(cells.cols / 2), Math.floor(cells.rows / 2)];
  show(col + stride * step[0], row + stride * step[1]);
});

// ---- the table

for (const reference of references) {
  const row = document.createElement("tr");
  const values = [reference.name, percent(reference.share), reference.relevance.toFixed(2), reference.scales];
  row.append(...values.map((value) => {
    const cell = document.createElement("td");
    cell.textContent = value;
    return cell;
  }));
  if (references.length > 1) row.firstChild.prepend(swatch(reference.colour));
  find("rows").append(row);
}
show(Math.floor(cells.cols / 2), Math.floor(cells.rows / 2));
find("place").hidden = true;
