// The sections, from top to bottom.

const profile = JSON.parse(document.getElementById("profile").textContent);
const { ratios, cards } = JSON.parse(document.getElementById("derived").textContent);
const { measured, estimates } = profile;
const BESIDE = 3; // contenders whose table leaves room for plots beside it
const ESTIMATE = "estimate, not measured";

const fileName = (path) => path.replace(/[\\/]+$/, "").split(/[\\/]/).pop() || path;
const section = (id, title, ...children) => h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), ...children);
const lead = (...children) => h("p", { class: "lead" }, ...children);
const tile = (value, caption, ...more) => h("div", { class: "tile" }, h("strong", {}, value), h("span", {}, caption), ...more);
const badge = () => h("span", { class: "badge" }, ESTIMATE);

function headline() {
  const [width, height] = profile.lr;
  const matched = profile.ref_scales * profile.refs.length;
  const references = `${profile.refs.length > 1 ? "references" : "reference"} ${profile.refs.map(size).join(", ")}`;
  const network = [profile.variant === fileName(profile.model) ? null : profile.variant, profile.trained ? null : "untrained"].filter(Boolean).map((word) => `${word}, `).join("");
  return h("header", {},
    h("p", { class: "kicker" }, `amsa ${profile.version} profile, ${profile.made.replace("T", " ").replace("+00:00", " UTC")}`),
    h("h1", { title: profile.model }, fileName(profile.model)),
    lead(`${network}LR ${size([width, height])} to ${size([4 * width, 4 * height])}, ${references}; `
      + `restored from ${profile.restored} of ${matched} references at a scale.`),
    h("div", { class: "tiles" }, tiles()),
    profile.notes.length ? h("p", { class: "lead" }, h("a", { href: "#notes" }, plural(profile.notes.length, "note")), " on how to read these numbers.") : null);
}

function tiles() {
  const found = [];
  const [first, ...others] = measured;
  if (first) {
    found.push(tile(duration(first.latency.p50), `a picture, ${first.label}, median of ${first.latency.milliseconds.length}`));
    others.forEach((other, i) => {
      found.push(tile(times(ratios[i + 1]), `as long with ${other.label}; CPU time ${times(divide(other.cpu_ms, first.cpu_ms))}`));
    });
    found.push(tile(`${number(first.peak_host_mb)} MB`, `peak memory, ${first.label}`));
  }
  for (const estimate of estimates) {
    found.push(tile(`${number(estimate.low_ms)} to ${number(estimate.high_ms)} ms`, `a picture on the ${estimate.gpu}, ${estimate.precision}`, badge()));
  }
  return found;
}

const contenderHeads = () => measured.map((m, i) => h("span", { class: "stage" }, swatch(contenderColour(i), "circle"), m.label));

function contenders() {
  const first = measured[0];
  const rows = (title, entries) => [h("tr", { class: "group" }, h("th", { colspan: measured.length + 1, scope: "rowgroup" }, title)),
    entries.map(([name, show]) => h("tr", {}, h("th", { scope: "row" }, name), measured.map((m, i) => h("td", {}, show(m, i)))))];
  const psnr = (m) => m === first ? "" : known(m.psnr_to_first) ? m.psnr_to_first.toFixed(1) : "equal";
  const sensors = [...new Set(measured.flatMap((m) => Object.keys(m.sensors)))];
  const range = (found) => found ? `${number(found[1])} (${number(found[0])} to ${number(found[2])})` : DASH;
  const several = measured.length > 1;
  return section("contenders", "Contenders",
    lead("Each in a process of its own, taking turns; a picture is encoded references, matching, restoring and the copy back."),
    scroll("Contenders",
      h("thead", {}, h("tr", {}, h("td"), contenderHeads().map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {},
        rows("how it runs", [["device", (m) => m.device], ["precision", (m) => m.precision], ["kernels", (m) => m.kernels]]),
        rows("time of a picture", [
          ["p50, ms", (m) => h("b", {}, number(m.latency.p50))],
          ["p90, ms", (m) => number(m.latency.p90)],
          ["p99, ms", (m) => number(m.latency.p99)],
          ["pictures timed", (m) => `${m.latency.milliseconds.length}`],
          ["pictures per second", (m) => number(m.latency.per_second)],
          several && ["time, of the first's", (m, i) => m === first ? "1" : times(ratios[i])],
          ["CPU time of all threads, ms", (m) => number(m.cpu_ms)],
          several && ["CPU time, of the first's", (m) => m === first ? "1" : times(divide(m.cpu_ms, first.cpu_ms))],
        ].filter(Boolean)),
        rows("once", [["first picture, ms", (m) => number(m.first_ms)], ["opening, ms", (m) => number(m.open_ms)]]),
        rows("memory", [
          ["peak of the process, MB", (m) => number(m.peak_host_mb)],
          measured.some((m) => known(m.peak_device_mb)) && ["peak on the GPU, MB", (m) => number(m.peak_device_mb)],
        ].filter(Boolean)),
        several ? rows("picture", [["PSNR to the first's, dB", psnr]]) : [],
        sensors.length ? rows("sensors: median (least to most)", sensors.map((name) => [name, (m) => range(m.sensors[name])])) : [])));
}

function latency() {
  const longest = Math.max(...measured.map((m) => m.latency.milliseconds.length));
  const rows = Array.from({ length: longest }, (_, k) => [`${k + 1}`, ...measured.map((m) => number(m.latency.milliseconds[k]))]);
  return section("latency", "Time of every picture",
    lead("Each dot is a picture, the first on top and the last at the bottom. The axis is logarithmic: equal distances are equal ratios."),
    latencyDots(measured),
    numbersBehind("Every time in milliseconds", plainTable("Time of every picture in milliseconds", ["picture", ...contenderHeads()], rows)));
}

function stages() {
  const names = [...new Set(measured.flatMap((m) => m.stages.map((stage) => stage.name)))];
  const rows = names.map((name) => [stageCell(name), ...measured.flatMap((m) => {
    const stage = m.stages.find((one) => one.name === name);
    const share = stage && divide(stage.milliseconds, sum(m.stages.map((one) => one.milliseconds)));
    return stage ? [number(stage.calls), number(stage.milliseconds), percent(share)] : [DASH, DASH, DASH];
  })]);
  const heads = ["stage", ...measured.flatMap((m) => [`${m.label}: calls`, "ms", "share"])];
  return section("stages", "Stages of a picture",
    lead("Medians; “other” is what is left of a picture's time."),
    stageBars(measured),
    numbersBehind("Stages as a table", plainTable("Stages of a picture", heads, rows)));
}

/** One of several at a time, chosen by a button each. */
function tabs(label, entries) {
  if (entries.length < 2) return entries.map(([, content]) => content);
  const panels = entries.map(([, content], i) => h("div", { class: "panel", hidden: i > 0 }, content));
  const buttons = entries.map(([name], i) => h("button", {
    type: "button", "aria-pressed": i === 0 ? "true" : "false",
    click: () => panels.forEach((panel, k) => {
      panel.hidden = k !== i;
      buttons[k].setAttribute("aria-pressed", k === i ? "true" : "false");
    }),
  }, name));
  return [h("div", { class: "tabs", role: "group", "aria-label": label }, buttons), ...panels];
}

function layers(found) {
  const tables = found.map((m) => {
    const total = sum(m.layers.map((layer) => layer.milliseconds));
    const describe = (shown) => {
      const ms = sum(shown.map((layer) => layer.milliseconds));
      return `${number(ms)} of ${number(total)} ms, ${percent(divide(ms, total))}`;
    };
    return [m.label, layerTable(`Layers of ${m.label}`, m.layers, measuredColumns(m.layers), 4, describe)];
  });
  return section("layers", "Layers",
    lead("Of one picture, from a run of their own, as profiling slows down what it measures. Bytes are all inputs and outputs once; caches serve many of them. A head sorts."),
    tabs("Layers of", tables));
}

function measuredRoofline(figures) {
  const said = measured.filter((m) => known(m.peak_gflops) && m.layers.length).map((m) => {
    const work = 2e-9 * sum(m.layers.map((layer) => layer.macs));
    const reached = divide(work, m.latency.p50 / 1e3);
    return `${m.label}: ${number(work / 2)} GMACs in ${duration(m.latency.p50)} are ${number(reached)} GFLOP/s, ${percent(divide(reached, m.peak_gflops))} of its peak.`;
  });
  return section("roofline", "Roofline, measured",
    lead("What each layer reaches, under what this device was measured to reach in float32 matrix products and in copies. A layer whose bytes come from a cache can lie above the slope. Its numbers are in the table of layers."),
    h("div", { class: "pair" }, figures),
    h("ul", { class: "said" }, said.map((line) => h("li", {}, line))));
}

function estimateSection(estimate, card) {
  const stagesOf = Object.entries(card.stages);
  const encoded = card.stages.encode_ref ?? [0, 0, 0];
  const range = (low, high) => `${number(low)} to ${number(high)} ms`;
  const middle = (layer) => layer.low_ms + layer.high_ms;
  const largest = [...estimate.layers].sort((a, b) => middle(b) - middle(a)).slice(0, 3);
  const describe = (shown) => `${number(sum(shown.map((l) => l.low_ms)))} to ${number(sum(shown.map((l) => l.high_ms)))} ms, without the time between launches; ${ESTIMATE}`;
  const plotted = estimatedRoofline(estimate, card);
  const stageRows = [
    ...stagesOf.map(([name, [low, high, launches]]) => [stageCell(name), number(low), number(high), number(launches)]),
    ["a picture", number(estimate.low_ms), number(estimate.high_ms), number(estimate.launches)],
  ];
  return h("article", { class: "estimate" },
    h("h3", {}, `${estimate.gpu} (${estimate.sm}), ${estimate.precision} `, badge()),
    h("div", { class: "tiles" },
      tile(range(estimate.low_ms, estimate.high_ms), "a picture with its references", badge()),
      tile(range(estimate.low_ms - encoded[0], estimate.high_ms - encoded[1]), "a picture with references encoded before", badge()),
      tile(number(estimate.launches), `launches of kernels and copies, ${number(estimate.launch_us)} µs between two`, badge()),
      tile(known(estimate.scratch_mb) ? `${number(estimate.scratch_mb)} MB` : "not known", known(estimate.scratch_mb) ? "scratch memory, read from the engines" : "scratch memory: no engines were looked into")),
    stagesOf.length ? [
      h("h4", {}, "Stages, from best to worst ", badge()),
      rangeBars(card.stages, `${estimate.gpu}: milliseconds of each stage, ${ESTIMATE}`),
      numbersBehind("Estimated stages as a table", plainTable("Estimated stages", ["stage", "ms, low", "ms, high", "launches"], stageRows)),
    ] : null,
    largest.length ? [
      h("h4", {}, `The ${largest.length} largest layers of ${estimate.layers.length} `, badge()),
      plainTable("Largest layers, estimated", ["layer", "stage", "kind", "limited by", "ms, low", "ms, high"],
        largest.map((layer) => [layer.name, stageCell(layer.stage), layer.op, layer.bound, number(layer.low_ms), number(layer.high_ms)]), 4),
    ] : null,
    plotted ? [
      h("h4", {}, "Roofline of the card ", badge()),
      lead("A line for each layer, from its slowest to its fastest estimate, its mark in the middle. What fits into the L2 cache is taken to be read there, but for the slowest. Layers that compute nothing are not in it."),
      plotted,
    ] : null,
    estimate.layers.length ? numbersBehind(`All ${estimate.layers.length} estimated layers as a table`,
      layerTable(`Estimated layers of the ${estimate.gpu}`, estimate.layers, ESTIMATED_COLUMNS, 5, describe)) : null,
    h("div", { class: "pair" },
      h("div", {}, h("h4", {}, "What would halve it ", badge()), h("ul", {}, estimate.to_halve.map((line) => h("li", {}, line)))),
      h("div", { class: "assumptions" }, h("h4", {}, "All that is assumed"), h("ul", {}, estimate.assumptions.map((line) => h("li", {}, line))))));
}

function machineFacts() {
  return section("machine", "Machine",
    h("dl", {}, Object.entries(profile.machine).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

const layered = measured.filter((m) => m.layers.length);
const figures = measuredRooflines(layered);
const sections = [
  measured.length && h("div", { class: measured.length <= BESIDE ? "beside" : null },
    contenders(),
    h("div", {}, measured.some((m) => m.stages.length) && stages(), latency())),
  layered.length && layers(layered),
  figures.length && measuredRoofline(figures),
  estimates.length && section("estimates", "Estimates, not measured", lead("Computed from the model's graphs and the cards' published figures; nothing here was measured."),
    estimates.map((estimate, i) => estimateSection(estimate, cards[i]))),
  profile.notes.length && section("notes", "Notes", h("ul", {}, profile.notes.map((note) => h("li", {}, note)))),
  machineFacts(),
].filter(Boolean);

const main = h("main", {}, sections);
document.title = `${fileName(profile.model)}: amsa profile`;
document.getElementById("report").append(
  headline(),
  h("nav", { "aria-label": "Sections" }, [...main.querySelectorAll("section")].map((one) => h("a", { href: `#${one.id}` }, one.querySelector("h2").textContent))),
  main);
redraw();
addEventListener("resize", () => redraw());
addEventListener("beforeprint", () => redraw(true));
addEventListener("afterprint", () => redraw());
