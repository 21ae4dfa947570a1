// Layers under the roofs of what they run on: operations per byte against operations per second, both logarithmic.

const speed = (rate) => (rate < 1e4 ? `${number(rate)} GFLOP/s` : `${number(rate / 1e3)} TFLOP/s`);
const bandwidth = (rate) => `${number(rate)} GB/s`;
const shortest = (labels, room) => labels.find((label) => label.length * CHARACTER < room) ?? labels[labels.length - 1];
const NUMBERED = 5; // layers that carry their rank

/** What an axis spans: all values, and room around them. */
const span = (values) => [Math.min(...values) / 1.7, Math.max(...values) * 1.9];

/**
 * points: {layer, x, y, weight, text} and for a range {low, high}; x in FLOP per byte, y in GFLOP/s.
 * arithmetic, memory: roofs, [name, GFLOP/s] and [name, GB/s], the highest of both first in `arithmetic`, last in `memory`.
 */
function roofline({ title, description, points, arithmetic, memory, xs, ys, estimated }) {
  const largest = Math.max(...points.map((point) => point.weight));
  const ranked = [...points].sort((a, b) => b.weight - a.weight);
  const draw = (width, mark) => {
    const frame = { left: 46, right: width - 14, top: 30, bottom: Math.round(Math.min(420, Math.max(310, width * 0.62))) };
    const x = (v) => frame.left + (Math.log(v / xs[0]) / Math.log(xs[1] / xs[0])) * (frame.right - frame.left);
    const y = (v) => frame.bottom - (Math.log(v / ys[0]) / Math.log(ys[1] / ys[0])) * (frame.bottom - frame.top);
    const tens = ([low, high]) => logTicks(low, high, 0);
    const children = [
      horizontalAxis(tens(xs), x, short, frame.top, frame.bottom, width),
      tens(ys).map((tick) =>
        s(
          "g",
          {},
          s("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(tick), y2: y(tick) }),
          text(frame.left - 6, y(tick) + 4, tick < 1e3 ? short(tick) : `${short(tick / 1e3)}k`, {
            class: "tick",
            "text-anchor": "end",
          }),
        ),
      ),
      text(0, 14, estimated ? "GFLOP/s, estimated, not measured" : "GFLOP/s, measured", { class: "axis" }),
      text(frame.right, frame.bottom + 34, "FLOP per byte", { class: "axis", "text-anchor": "end" }),
    ];
    const roof = roofs(frame, x, y);
    children.push(roof.lines);
    const taken = [];
    // The longest are drawn first, so that none hides a smaller one; the keyboard goes from the longest to the shortest.
    ranked.forEach((point, i) => {
      const { colour, shape } = stageLook(point.layer.stage);
      const r = 2.5 + 8.5 * Math.sqrt(point.weight / largest);
      if (known(point.low)) {
        children.push(
          s("line", { class: "whisker", stroke: colour, x1: x(point.x), x2: x(point.x), y1: y(point.low), y2: y(point.high) }),
        );
      }
      children.push(
        mark(s("path", { d: marker(shape, x(point.x), y(point.y), r), fill: colour, "fill-opacity": 0.82 }), point.text),
      );
      if (i < NUMBERED) taken.push(freePlace(x(point.x), y(point.y), r, taken));
    });
    const ranks = taken.map(([left, top], i) => text(left, top + 4, `${i + 1}`, { class: "rank halo", "text-anchor": "middle" }));
    return { height: frame.bottom + 42, children: [children, roof.labels, ranks] };
  };

  /** Of each bandwidth a slope up to the highest arithmetic, of each arithmetic a level from the steepest slope on. */
  function roofs(frame, x, y) {
    const [ceiling, steepest] = [
      Math.max(...arithmetic.map((roof) => roof[1]), 0),
      Math.max(...memory.map((roof) => roof[1]), 0),
    ];
    const inside = (v) => Math.min(Math.max(v, xs[0]), xs[1]);
    const [lines, labels] = [[], []];
    memory.forEach(([name, rate], i) => {
      const begin = Math.max(xs[0], ys[0] / rate);
      const end = inside(ceiling ? ceiling / rate : ys[1] / rate);
      if (end <= begin) return;
      const angle = (Math.atan2(y(end * rate) - y(begin * rate), x(end) - x(begin)) * 180) / Math.PI;
      const at = begin * (end / begin) ** 0.04;
      lines.push(
        s("line", { class: i ? "roof assumed" : "roof", x1: x(begin), y1: y(begin * rate), x2: x(end), y2: y(end * rate) }),
      );
      const room = Math.hypot(x(end) - x(at), y(end * rate) - y(at * rate)) * 0.8;
      labels.push(
        text(0, -5, shortest([`${name}, ${bandwidth(rate)}`, bandwidth(rate)], room), {
          class: "tick halo",
          transform: `translate(${x(at)} ${y(at * rate)}) rotate(${angle})`,
        }),
      );
    });
    arithmetic.forEach(([name, rate]) => {
      const begin = steepest ? inside(rate / steepest) : xs[0];
      lines.push(s("line", { class: "roof", x1: x(begin), x2: frame.right, y1: y(rate), y2: y(rate) }));
      const label = shortest(
        [`${name}, ${speed(rate)}`, speed(rate)],
        Math.max(frame.right - x(begin), 0.4 * (frame.right - frame.left)),
      );
      labels.push(text(frame.right - 2, y(rate) - 5, label, { class: "tick halo", "text-anchor": "end" }));
    });
    return { lines, labels };
  }

  const figure = plot({
    title,
    description,
    hint: "Point at a layer, or press Tab and the arrow keys; larger marks take longer.",
    draw,
  });
  const stages = [...new Set(points.map((point) => point.layer.stage))];
  figure.append(legend(stages.map((name) => [swatch(stageLook(name).colour, stageLook(name).shape), name])));
  const named = [
    ...arithmetic.map(([name, rate]) => `${name} ${speed(rate)}`),
    ...memory.map(([name, rate]) => `${name} ${bandwidth(rate)}`),
  ];
  if (named.length) figure.append(h("p", { class: "roofs" }, `Roofs: ${named.join("; ")}.`));
  figure.append(
    h(
      "ol",
      { class: "ranked" },
      ranked.slice(0, NUMBERED).map((point) => h("li", {}, point.text)),
    ),
  );
  return figure;
}

/** Where a mark's rank is written: around it, at the first place that is 13 pixels from all that are taken. */
function freePlace(x, y, r, taken) {
  const far = r + 8;
  const places = [
    [x, y - far],
    [x + far, y],
    [x - far, y],
    [x, y + far],
    [x + far, y - far],
    [x - far, y - far],
  ];
  return places.find(([left, top]) => taken.every((other) => Math.hypot(left - other[0], top - other[1]) >= 13)) ?? places[0];
}

/** Of every contender whose layers are known, all on the same axes. */
function measuredRooflines(measured) {
  const found = measured
    .map((m) => {
      const points = m.layers.map((layer) => ({ layer, x: intensity(layer), y: gflops(layer), weight: layer.milliseconds }));
      return { m, points: points.filter((point) => known(point.x) && known(point.y)) };
    })
    .filter(({ points }) => points.length);
  const all = found.flatMap(({ points }) => points);
  if (!all.length) return [];
  const xs = span(all.map((point) => point.x));
  const ys = span([...all.map((point) => point.y), ...found.map(({ m }) => m.peak_gflops).filter(known)]);
  return found.map(({ m, points }) => {
    for (const point of points) {
      const { layer } = point;
      const reached = `${number(point.y)} GFLOP/s at ${number(point.x)} FLOP per byte`;
      point.text = `${layer.name} (${layer.stage}): ${duration(point.weight)}, ${reached}`;
    }
    const roofs = [
      known(m.peak_gflops) && `${number(m.peak_gflops)} GFLOP/s`,
      known(m.peak_gbs) && `${number(m.peak_gbs)} GB/s`,
    ].filter(Boolean);
    const figure = roofline({
      title: `${m.label}: measured roofline`,
      description: `${plural(points.length, "layer")} with known arithmetic. Measured peaks: ${roofs.join(" and ") || "none"}.`,
      points,
      xs,
      ys,
      arithmetic: known(m.peak_gflops) ? [["FP32 products", m.peak_gflops]] : [],
      memory: known(m.peak_gbs) ? [["copies", m.peak_gbs]] : [],
    });
    return h("div", {}, h("h3", {}, m.label), figure);
  });
}

/** Of an estimate, under the roofs of its card. */
function estimatedRoofline(estimate, card) {
  const points = estimate.layers
    .filter((layer) => known(intensity(layer)) && layer.roofline_ms > 0)
    .map((layer) => {
      const [low, high] = [gflops(layer, layer.high_ms), gflops(layer, layer.low_ms)];
      const weight = (layer.low_ms + layer.high_ms) / 2;
      const range = `${number(layer.low_ms)} to ${number(layer.high_ms)} ms`;
      const limit = `${number(intensity(layer))} FLOP per byte, limited by ${layer.bound}`;
      const said = `${layer.name} (${layer.stage}): ${range}, estimated; ${limit}`;
      return { layer, x: intensity(layer), y: Math.sqrt(low * high), low, high, weight, text: said };
    });
  if (!points.length) return null;
  return roofline({
    title: `${estimate.gpu}: roofline, estimate, not measured`,
    description: `${plural(points.length, "layer")} that compute, from the lowest to the highest efficiency that is assumed.`,
    points,
    arithmetic: card.arithmetic,
    memory: card.memory,
    xs: span(points.map((point) => point.x)),
    ys: span([...points.flatMap((point) => [point.low, point.high]), ...card.arithmetic.map((roof) => roof[1])]),
    estimated: true,
  });
}
