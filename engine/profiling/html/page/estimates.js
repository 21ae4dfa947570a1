// The section of an estimate. Every part of it says that nothing was measured.

function estimateSection(estimate, card) {
  const stagesOf = Object.entries(card.stages);
  const encoded = card.stages.encode_ref ?? [0, 0, 0];
  const range = (low, high) => `${number(low)} to ${number(high)} ms`;
  const middle = (layer) => layer.low_ms + layer.high_ms;
  const largest = [...estimate.layers].sort((a, b) => middle(b) - middle(a)).slice(0, 3);
  const describe = (shown) => {
    const [low, high] = ["low_ms", "high_ms"].map((name) => sum(shown.map((layer) => layer[name])));
    return `${range(low, high)}, without the time between launches; ${ESTIMATE}`;
  };
  const plotted = estimatedRoofline(estimate, card);
  const stageRows = [
    ...stagesOf.map(([name, [low, high, launches]]) => [stageCell(name), number(low), number(high), number(launches)]),
    ["a picture", number(estimate.low_ms), number(estimate.high_ms), number(estimate.launches)],
  ];
  return h(
    "article",
    { class: "estimate" },
    h("h3", {}, `${estimate.gpu} (${estimate.sm}), ${estimate.precision} `, badge()),
    h(
      "div",
      { class: "tiles" },
      tile(range(estimate.low_ms, estimate.high_ms), "a picture with its references", badge()),
      tile(
        range(estimate.low_ms - encoded[0], estimate.high_ms - encoded[1]),
        "a picture with references encoded before",
        badge(),
      ),
      tile(number(estimate.launches), `launches of kernels and copies, ${number(estimate.launch_us)} µs between two`, badge()),
      tile(
        known(estimate.scratch_mb) ? `${number(estimate.scratch_mb)} MB` : "not known",
        known(estimate.scratch_mb) ? "scratch memory, read from the engines" : "scratch memory: no engines were looked into",
      ),
    ),
    stagesOf.length
      ? [
          h("h4", {}, "Stages, from best to worst ", badge()),
          rangeBars(card.stages, `${estimate.gpu}: milliseconds of each stage, ${ESTIMATE}`),
          numbersBehind(
            "Estimated stages as a table",
            plainTable("Estimated stages", ["stage", "ms, low", "ms, high", "launches"], stageRows),
          ),
        ]
      : null,
    largest.length
      ? [
          h("h4", {}, `The ${largest.length} largest layers of ${estimate.layers.length} `, badge()),
          plainTable(
            "Largest layers, estimated",
            ["layer", "stage", "kind", "limited by", "ms, low", "ms, high"],
            largest.map((layer) => [
              layer.name,
              stageCell(layer.stage),
              layer.op,
              layer.bound,
              number(layer.low_ms),
              number(layer.high_ms),
            ]),
            4,
          ),
        ]
      : null,
    plotted
      ? [
          h("h4", {}, "Roofline of the card ", badge()),
          lead(
            "A line for each layer, from its slowest to its fastest estimate, its mark in the middle. What fits into the L2 cache ",
            "is taken to be read there, but for the slowest. Layers that compute nothing are not in it.",
          ),
          plotted,
        ]
      : null,
    estimate.layers.length
      ? numbersBehind(
          `All ${estimate.layers.length} estimated layers as a table`,
          layerTable(`Estimated layers of the ${estimate.gpu}`, estimate.layers, ESTIMATED_COLUMNS, 5, describe),
        )
      : null,
    h(
      "div",
      { class: "pair" },
      h(
        "div",
        {},
        h("h4", {}, "What would halve it ", badge()),
        h(
          "ul",
          {},
          estimate.to_halve.map((line) => h("li", {}, line)),
        ),
      ),
      h(
        "div",
        { class: "assumptions" },
        h("h4", {}, "All that is assumed"),
        h(
          "ul",
          {},
          estimate.assumptions.map((line) => h("li", {}, line)),
        ),
      ),
    ),
  );
}
