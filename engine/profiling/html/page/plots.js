// What all plots share, bars of stages, and one dot for each timed picture.

const PRINTED = 700; // pixels of a page's width, A4 or Letter with margins
const CHARACTER = 6.6; // pixels of one at 12 px, on the generous side
const redraws = [];
let plots = 0;

/**
 * A plot with a line below it that tells of the mark under the pointer or the keyboard.
 * `draw(width, mark)` returns what the drawing holds and its height; `mark(element, text)` makes an element one of the marks:
 * one of them takes the Tab key, and the arrow keys go through all of them in the order in which they were made.
 */
function plot({ title, description, hint, draw }) {
  const id = `plot-${++plots}`;
  const readout = h("p", { class: "readout" }, hint);
  const box = h("div", { class: "plot" });
  const render = (printed) => {
    const width = printed ? PRINTED : Math.max(240, Math.floor(box.clientWidth));
    if (box.dataset.width === `${width}`) return;
    box.dataset.width = width;
    const marks = [];
    const mark = (element, text) => {
      const tell = () => {
        readout.textContent = text;
      };
      const index = marks.length;
      element.classList.add("mark");
      fill(
        element,
        {
          role: "img",
          "aria-label": text,
          tabindex: index ? -1 : 0,
          focus: tell,
          pointerenter: tell,
          keydown: (event) => {
            const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
            const next = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : step && index + step;
            if (next === undefined || !marks[next]) return;
            event.preventDefault();
            element.setAttribute("tabindex", -1);
            marks[next].setAttribute("tabindex", 0);
            marks[next].focus();
          },
        },
        [],
      );
      marks.push(element);
      return element;
    };
    const { height, children } = draw(width, mark);
    box.replaceChildren(
      s(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-labelledby": `${id}-title ${id}-desc` },
        s("title", { id: `${id}-title` }, title),
        s("desc", { id: `${id}-desc` }, description),
        children,
      ),
    );
  };
  redraws.push(render);
  return h("figure", {}, box, readout);
}

const text = (x, y, content, attributes = {}) => s("text", { x, y, ...attributes }, content);

/** Cuts a text to what fits into so many pixels. */
function fit(content, pixels) {
  const count = Math.max(1, Math.floor(pixels / CHARACTER));
  return content.length <= count ? content : `${content.slice(0, count - 1)}…`;
}

/** Lines and labels of an axis; at the drawing's edges labels stay inside. */
function horizontalAxis(places, scale, label, top, bottom, width) {
  return places.map((place) =>
    s(
      "g",
      {},
      s("line", { class: "grid", x1: scale(place), x2: scale(place), y1: top, y2: bottom }),
      text(scale(place), bottom + 16, label(place), {
        class: "tick",
        "text-anchor": scale(place) < 24 ? "start" : scale(place) > width - 24 ? "end" : "middle",
      }),
    ),
  );
}

const legend = (entries) =>
  h(
    "ul",
    { class: "legend" },
    entries.map(([icon, label]) => h("li", {}, icon, label)),
  );

/** Stages of one picture in a row, a bar for each contender, on one axis. */
function stageBars(measured) {
  const totals = measured.map((m) => sum(m.stages.map((stage) => stage.milliseconds)));
  const row = 62,
    bar = 28,
    left = 2;
  const draw = (width, mark) => {
    const most = Math.max(...totals);
    const right = 18;
    const x = (ms) => left + (most > 0 ? ms / most : 0) * (width - left - right);
    const bottom = row * measured.length + 4;
    const children = most > 0 ? horizontalAxis(ticks(0, most, width / 70), x, shortDuration, 4, bottom, width) : [];
    measured.forEach((m, i) => {
      const top = row * i + 24;
      const total = duration(totals[i]);
      children.push(text(left, top - 7, fit(m.label, width - 90), { class: "label halo" }));
      children.push(text(width - right, top - 7, total, { class: "tick halo", "text-anchor": "end" }));
      let from = 0;
      for (const stage of m.stages) {
        const share = divide(stage.milliseconds, totals[i]);
        const [begin, wide] = [x(from), x(from + stage.milliseconds) - x(from)];
        from += stage.milliseconds;
        const { colour, ink } = stageLook(stage.name);
        const shape = s("rect", { x: begin, y: top, width: Math.max(wide - (wide > 3 ? 1 : 0), 0.5), height: bar, fill: colour });
        const calls = stage.name === "other" ? "" : `, ${plural(stage.calls, "call")}`;
        children.push(mark(shape, `${m.label}, ${stage.name}: ${duration(stage.milliseconds)}, ${percent(share)}${calls}`));
        const fits = [`${stage.name} ${percent(share)}`, stage.name].find((label) => label.length * CHARACTER + 8 < wide);
        if (fits)
          children.push(text(begin + wide / 2, top + bar / 2 + 4, fits, { class: "inside", fill: ink, "text-anchor": "middle" }));
      }
    });
    return { height: bottom + 24, children };
  };
  const names = [...new Set(measured.flatMap((m) => m.stages.map((stage) => stage.name)))];
  const figure = plot({
    title: "Milliseconds of each stage",
    description: measured.map((m, i) => `${m.label}: ${duration(totals[i])} in ${plural(m.stages.length, "stage")}.`).join(" "),
    hint: "Point at a stage, or press Tab and the arrow keys.",
    draw,
  });
  figure.append(legend(names.map((name) => [swatch(stageLook(name).colour), name])));
  return figure;
}

/** Every timed picture as a dot, the first on top of its row and the last at the bottom, with the quantiles, on one log axis. */
function latencyDots(measured) {
  const all = measured.flatMap((m) => m.latency.milliseconds);
  const [low, high] = [Math.min(...all) / 1.04, Math.max(...all) * 1.04];
  const row = 96,
    strip = 50,
    edge = 26;
  const draw = (width, mark) => {
    const x = (ms) => edge + (Math.log(ms / low) / Math.log(high / low)) * (width - 2 * edge);
    const bottom = row * measured.length;
    const places = high / low > 3 ? logTicks(low, high, width / 70) : ticks(low, high, width / 70);
    const children = horizontalAxis(places, x, shortDuration, 4, bottom, width);
    measured.forEach((m, i) => {
      const { milliseconds, p50, p90, p99 } = m.latency;
      const top = row * i + 34;
      const several = milliseconds.length > 1;
      children.push(text(2, top - 16, fit(m.label, width - 8), { class: "label halo" }));
      for (const [name, at] of several
        ? [
            ["p99", p99],
            ["p90", p90],
            ["p50", p50],
          ]
        : [["p50", p50]]) {
        children.push(s("line", { class: `quantile ${name}`, x1: x(at), x2: x(at), y1: top - 6, y2: top + strip }));
      }
      const marked = several ? `p50 ${duration(p50)}` : duration(p50);
      const anchor = x(p50) < width / 2 ? "start" : "end";
      children.push(text(x(p50) + (anchor === "start" ? 5 : -5), top - 1, marked, { class: "tick halo", "text-anchor": anchor }));
      milliseconds.forEach((ms, k) => {
        const y = several ? top + 8 + (k / (milliseconds.length - 1)) * (strip - 16) : top + strip / 2;
        const dot = s("circle", { cx: x(ms), cy: y, r: milliseconds.length > 100 ? 3 : 4.5, fill: contenderColour(i) });
        children.push(mark(dot, `${m.label}, picture ${k + 1} of ${milliseconds.length}: ${number(ms)} ms`));
      });
    });
    return { height: bottom + 24, children };
  };
  const figure = plot({
    title: "Time of every picture",
    description: measured
      .map((m) => `${m.label}: ${plural(m.latency.milliseconds.length, "picture")}, median ${duration(m.latency.p50)}.`)
      .join(" "),
    hint: "Point at a picture, or press Tab and the arrow keys.",
    draw,
  });
  const line = (name) =>
    s(
      "svg",
      { class: "swatch", viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" },
      s("line", { class: `quantile ${name}`, x1: 6, x2: 6, y1: 0, y2: 12 }),
    );
  if (measured.some((m) => m.latency.milliseconds.length > 1)) {
    figure.append(legend(["p50", "p90", "p99"].map((name) => [line(name), name])));
  }
  return figure;
}

/** An estimate's stages: each a bar from its low to its high milliseconds. */
function rangeBars(stages, title) {
  const rows = Object.entries(stages);
  const row = 40;
  const draw = (width, mark) => {
    const most = Math.max(...rows.map(([, [, high]]) => high));
    const left = Math.min(120, width * 0.3),
      right = 24;
    const x = (ms) => left + (ms / most) * (width - left - right);
    const bottom = row * rows.length + 4;
    const children = horizontalAxis(ticks(0, most, width / 70), x, shortDuration, 4, bottom, width);
    rows.forEach(([name, [low, high, launches]], i) => {
      const top = row * i + 8;
      const shape = s("rect", {
        x: x(low),
        y: top + 2,
        width: Math.max(x(high) - x(low), 2),
        height: 22,
        rx: 3,
        fill: stageLook(name).colour,
        class: "range",
      });
      const range = `${number(low)} to ${number(high)} ms`;
      children.push(text(2, top + 17, fit(name, left - 4), { class: "label" }));
      children.push(mark(shape, `${name}: ${range}, ${plural(launches, "launch", "es")}; estimate, not measured`));
      const wide = range.length * CHARACTER + 8;
      const place = x(high) + wide < width ? [x(high) + 6, "start"] : x(low) - wide > left ? [x(low) - 6, "end"] : null;
      if (place) children.push(text(place[0], top + 17, range, { class: "tick halo", "text-anchor": place[1] }));
      else
        children.push(
          text((x(low) + x(high)) / 2, top + 17, range, { class: "inside", fill: stageLook(name).ink, "text-anchor": "middle" }),
        );
    });
    return { height: bottom + 24, children };
  };
  return plot({
    title,
    description: rows.map(([name, [low, high]]) => `${name}: ${number(low)} to ${number(high)} ms.`).join(" "),
    hint: "Point at a stage, or press Tab and the arrow keys.",
    draw,
  });
}

function redraw(printed = false) {
  for (const render of redraws) render(printed);
}
