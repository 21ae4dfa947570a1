// Tables that sort, filter and begin short.

const SHOWN = 30; // rows until all are asked for

/** A table in a box of its own that scrolls. */
const scroll = (label, ...children) =>
  h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", {}, ...children));

const numbersBehind = (label, table) => h("details", { class: "numbers" }, h("summary", {}, label), table);

/** Rows of cells, text or elements; the first cell of a row is its head, the first `words` columns are not numbers. */
function plainTable(label, heads, rows, words = 1) {
  const left = (i) => ({ class: i < words ? "words" : null });
  return scroll(
    label,
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head, i) => h("th", { scope: "col", ...left(i) }, head)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map(([head, ...cells]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, head),
          cells.map((cell, i) => h("td", left(i + 1), cell)),
        ),
      ),
    ),
  );
}

/** A column: its head, what it sorts by, and how it is shown; `words`: text, not a number. */
const column = (head, value, show = number, words = false) => ({ head, value, show, words });

const stageCell = (name) => h("span", { class: "stage" }, swatch(stageLook(name).colour, stageLook(name).shape), name);
/** A share with a bar behind it; the largest share's bar is as wide as the cell. */
const shareCell = (largest) => (share) =>
  h("span", { class: "share", style: `--share: ${(100 * (divide(share, largest) ?? 0)).toFixed(1)}%` }, percent(share));

function measuredColumns(layers) {
  const total = sum(layers.map((layer) => layer.milliseconds));
  const largest = divide(Math.max(...layers.map((layer) => layer.milliseconds)), total);
  return [
    column("layer", (layer) => layer.name, String, true),
    column("stage", (layer) => layer.stage, stageCell, true),
    column("kind", (layer) => layer.op, String, true),
    column("calls", (layer) => layer.calls),
    column("ms", (layer) => layer.milliseconds),
    column("share", (layer) => divide(layer.milliseconds, total), shareCell(largest)),
    column("GMACs", (layer) => divide(layer.macs || null, 1e9)),
    column("MB", (layer) => divide(layer.bytes, 1e6)),
    column("GFLOP/s", (layer) => gflops(layer)),
    column("GB/s", (layer) => gbs(layer)),
    column("FLOP/byte", (layer) => intensity(layer)),
  ];
}

const ESTIMATED_COLUMNS = [
  column("layer", (layer) => layer.name, String, true),
  column("stage", (layer) => layer.stage, stageCell, true),
  column("kind", (layer) => layer.op, String, true),
  column("limited by", (layer) => layer.bound, String, true),
  column("calls", (layer) => layer.calls),
  column("ms, high", (layer) => layer.high_ms),
  column("ms, low", (layer) => layer.low_ms),
  column("ms, roofline", (layer) => layer.roofline_ms),
  column("GMACs", (layer) => divide(layer.macs || null, 1e9)),
  column("MB", (layer) => divide(layer.bytes, 1e6)),
  column("FLOP/byte", (layer) => intensity(layer)),
];

/**
 * Layers as a table: sorted by any column, of one stage, of the layers whose name or kind holds a text, 30 or all.
 * `by`: index of the column that sorts it first, the largest on top.
 */
function layerTable(label, layers, columns, by, describe) {
  const state = { by, down: true, stage: "", words: "", all: false };
  const body = h("tbody");
  const count = h("p", { class: "count", "aria-live": "polite" });
  const more = h("button", {
    type: "button",
    class: "more",
    click: () => {
      state.all = !state.all;
      update();
    },
  });
  const heads = columns.map(({ head, words }, i) =>
    h(
      "th",
      { scope: "col", class: words ? "words" : null },
      h(
        "button",
        {
          type: "button",
          click: () => {
            state.down = state.by === i ? !state.down : !words;
            state.by = i;
            update();
          },
        },
        head,
      ),
    ),
  );
  const compare = (a, b) => {
    const [x, y] = [columns[state.by].value(a), columns[state.by].value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last, either way
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return state.down ? -order : order;
  };
  function update() {
    const words = state.words.trim().toLowerCase();
    const found = layers
      .filter(
        (layer) =>
          (!state.stage || layer.stage === state.stage) && (!words || `${layer.name} ${layer.op}`.toLowerCase().includes(words)),
      )
      .sort(compare);
    const shown = state.all ? found : found.slice(0, SHOWN);
    body.replaceChildren(
      ...shown.map((layer) =>
        h(
          "tr",
          {},
          columns.map(({ value, show, words: isWords }, i) =>
            h(i ? "td" : "th", { class: isWords ? "words" : null, scope: i ? null : "row" }, show(value(layer))),
          ),
        ),
      ),
    );
    heads.forEach((head, i) => {
      if (i === state.by) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    count.textContent = `${shown.length} of ${plural(layers.length, "layer")}: ${describe(shown)}`;
    more.hidden = found.length <= SHOWN;
    more.textContent = state.all ? `Only the first ${SHOWN}` : `All ${found.length}`;
  }
  const stages = [...new Set(layers.map((layer) => layer.stage))];
  const controls = h(
    "div",
    { class: "controls" },
    h(
      "label",
      {},
      "Stage ",
      h(
        "select",
        {
          change: (event) => {
            state.stage = event.target.value;
            update();
          },
        },
        h("option", { value: "" }, "all"),
        stages.map((name) => h("option", { value: name }, name)),
      ),
    ),
    h(
      "label",
      {},
      "Name or kind ",
      h("input", {
        type: "search",
        spellcheck: "false",
        placeholder: "as Conv",
        input: (event) => {
          state.words = event.target.value;
          update();
        },
      }),
    ),
  );
  update();
  return h("div", { class: "layers" }, controls, count, scroll(label, h("thead", {}, h("tr", {}, heads)), body), more);
}
