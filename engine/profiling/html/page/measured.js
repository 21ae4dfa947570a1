// The profile, and the sections of what was measured.

const profile = JSON.parse(document.getElementById("profile").textContent);
const { ratios, cards } = JSON.parse(document.getElementById("derived").textContent);
const { measured, estimates } = profile;
const BESIDE = 3; // contenders whose table leaves room for plots beside it
const ESTIMATE = "estimate, not measured";

const fileName = (path) =>
  path
    .replace(/[\\/]+$/, "")
    .split(/[\\/]/)
    .pop() || path;
const section = (id, title, ...children) =>
  h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), ...children);
const lead = (...children) => h("p", { class: "lead" }, ...children);
const tile = (value, caption, ...more) => h("div", { class: "tile" }, h("strong", {}, value), h("span", {}, caption), ...more);
const badge = () => h("span", { class: "badge" }, ESTIMATE);

const contenderHeads = () => measured.map((m, i) => h("span", { class: "stage" }, swatch(contenderColour(i), "circle"), m.label));

function contenders() {
  const first = measured[0];
  const rows = (title, entries) => [
    h("tr", { class: "group" }, h("th", { colspan: measured.length + 1, scope: "rowgroup" }, title)),
    entries.map(([name, show]) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        measured.map((m, i) => h("td", {}, show(m, i))),
      ),
    ),
  ];
  const psnr = (m) => (m === first ? "" : known(m.psnr_to_first) ? m.psnr_to_first.toFixed(1) : "equal");
  const sensors = [...new Set(measured.flatMap((m) => Object.keys(m.sensors)))];
  const range = (found) => (found ? `${number(found[1])} (${number(found[0])} to ${number(found[2])})` : DASH);
  const several = measured.length > 1;
  return section(
    "contenders",
    "Contenders",
    lead("Each in a process of its own, taking turns; a picture is encoded references, matching, restoring and the copy back."),
    scroll(
      "Contenders",
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("td"),
          contenderHeads().map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h(
        "tbody",
        {},
        rows("how it runs", [
          ["device", (m) => m.device],
          ["precision", (m) => m.precision],
          ["kernels", (m) => m.kernels],
        ]),
        rows(
          "time of a picture",
          [
            ["p50, ms", (m) => h("b", {}, number(m.latency.p50))],
            ["p90, ms", (m) => number(m.latency.p90)],
            ["p99, ms", (m) => number(m.latency.p99)],
            ["pictures timed", (m) => `${m.latency.milliseconds.length}`],
            ["pictures per second", (m) => number(m.latency.per_second)],
            several && ["time, of the first's", (m, i) => (m === first ? "1" : times(ratios[i]))],
            ["CPU time of all threads, ms", (m) => number(m.cpu_ms)],
            several && ["CPU time, of the first's", (m) => (m === first ? "1" : times(divide(m.cpu_ms, first.cpu_ms)))],
          ].filter(Boolean),
        ),
        rows("once", [
          ["first picture, ms", (m) => number(m.first_ms)],
          ["opening, ms", (m) => number(m.open_ms)],
        ]),
        rows(
          "memory",
          [
            ["peak of the process, MB", (m) => number(m.peak_host_mb)],
            measured.some((m) => known(m.peak_device_mb)) && ["peak on the GPU, MB", (m) => number(m.peak_device_mb)],
          ].filter(Boolean),
        ),
        several ? rows("picture", [["PSNR to the first's, dB", psnr]]) : [],
        sensors.length
          ? rows(
              "sensors: median (least to most)",
              sensors.map((name) => [name, (m) => range(m.sensors[name])]),
            )
          : [],
      ),
    ),
  );
}

function latency() {
  const longest = Math.max(...measured.map((m) => m.latency.milliseconds.length));
  const rows = Array.from({ length: longest }, (_, k) => [`${k + 1}`, ...measured.map((m) => number(m.latency.milliseconds[k]))]);
  return section(
    "latency",
    "Time of every picture",
    lead("Each dot is a picture, the first on top and the last at the bottom. The axis is logarithmic."),
    latencyDots(measured),
    numbersBehind(
      "Every time in milliseconds",
      plainTable("Time of every picture in milliseconds", ["picture", ...contenderHeads()], rows),
    ),
  );
}

function stages() {
  const names = [...new Set(measured.flatMap((m) => m.stages.map((stage) => stage.name)))];
  const rows = names.map((name) => [
    stageCell(name),
    ...measured.flatMap((m) => {
      const stage = m.stages.find((one) => one.name === name);
      const share = stage && divide(stage.milliseconds, sum(m.stages.map((one) => one.milliseconds)));
      return stage ? [number(stage.calls), number(stage.milliseconds), percent(share)] : [DASH, DASH, DASH];
    }),
  ]);
  const heads = ["stage", ...measured.flatMap((m) => [`${m.label}: calls`, "ms", "share"])];
  return section(
    "stages",
    "Stages of a picture",
    lead("Medians; “other” is what is left of a picture's time."),
    stageBars(measured),
    numbersBehind("Stages as a table", plainTable("Stages of a picture", heads, rows)),
  );
}

/** One of several at a time, chosen by a button each. */
function tabs(label, entries) {
  if (entries.length < 2) return entries.map(([, content]) => content);
  const panels = entries.map(([, content], i) => h("div", { class: "panel", hidden: i > 0 }, content));
  const buttons = entries.map(([name], i) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": i === 0 ? "true" : "false",
        click: () =>
          panels.forEach((panel, k) => {
            panel.hidden = k !== i;
            buttons[k].setAttribute("aria-pressed", k === i ? "true" : "false");
          }),
      },
      name,
    ),
  );
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
  return section(
    "layers",
    "Layers",
    lead(
      "Of one picture, from a run of their own, as profiling slows down what it measures. ",
      "Bytes are all inputs and outputs once; caches serve many of them. A head sorts.",
    ),
    tabs("Layers of", tables),
  );
}

function measuredRoofline(figures) {
  const said = measured
    .filter((m) => known(m.peak_gflops) && m.layers.length)
    .map((m) => {
      const work = 2e-9 * sum(m.layers.map((layer) => layer.macs));
      const reached = divide(work, m.latency.p50 / 1e3);
      const share = percent(divide(reached, m.peak_gflops));
      const time = duration(m.latency.p50);
      return `${m.label}: ${number(work / 2)} GMACs in ${time} are ${number(reached)} GFLOP/s, ${share} of its peak.`;
    });
  return section(
    "roofline",
    "Roofline, measured",
    lead(
      "What each layer reaches, under what this device was measured to reach in float32 matrix products and in copies. ",
      "A layer whose bytes come from a cache can lie above the slope. Its numbers are in the table of layers.",
    ),
    h("div", { class: "pair" }, figures),
    h(
      "ul",
      { class: "said" },
      said.map((line) => h("li", {}, line)),
    ),
  );
}
