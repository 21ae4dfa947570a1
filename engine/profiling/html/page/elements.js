"use strict";

// Elements. Children that are strings become text: nothing here parses HTML.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Numbers as text. What is not known is null in the profile, and a dash here.

const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits or all before the point, thousands apart, as 1,946 or 33.0 or 0.00210; whole numbers as they are. */
function number(value) {
  if (!known(value)) return DASH;
  const whole = Math.abs(value) >= 100 || Number.isInteger(value);
  const options = whole ? { maximumFractionDigits: 0 } : { minimumSignificantDigits: 3, maximumSignificantDigits: 3 };
  return value.toLocaleString("en", options);
}

/** Round numbers, as those of axes. */
const short = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
const shortDuration = (ms) => (!ms ? "0" : ms < 1000 ? `${short(ms)} ms` : `${short(ms / 1e3)} s`);
const percent = (share) => (!known(share) ? DASH : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);
const duration = (ms) => (!known(ms) ? DASH : ms < 1000 ? `${number(ms)} ms` : `${number(ms / 1e3)} s`);
const times = (ratio) => (!known(ratio) ? DASH : `${ratio.toFixed(ratio < 10 ? 2 : 1)} ×`);
const plural = (count, word, ending = "s") => `${number(count)} ${word}${count === 1 ? "" : ending}`;
const size = ([width, height]) => `${width}×${height}`;
const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const divide = (a, b) => (known(a) && known(b) && b > 0 ? a / b : null);

// What a layer does per second and per byte; a multiply-accumulate is two operations.

const operations = (layer) => (layer.macs ? 2 * layer.macs : null);
const gflops = (layer, ms = layer.milliseconds) => divide(operations(layer), ms * 1e6);
const gbs = (layer) => divide(layer.bytes || null, layer.milliseconds * 1e6);
const intensity = (layer) => divide(operations(layer), layer.bytes);

// Colours by Okabe and Ito; stages that run no graph are gray. Unknown names get hues a golden angle apart.

const STAGES = new Map([
  ["encode_lr", ["#56b4e9", "circle"]],
  ["encode_ref", ["#0072b2", "square"]],
  ["match", ["#e69f00", "triangle"]],
  ["restore", ["#009e73", "diamond"]],
  ["finish", ["#cc79a7", "hexagon"]],
  ["copies", ["#d55e00", "cross"]],
  ["prepare", ["#8d9995", "circle"]],
  ["fusion", ["#5f6b67", "square"]],
  ["other", ["#b9c3bf", "circle"]],
]);
const DARK = new Set(["#0072b2", "#5f6b67"]); // on which white is read better than black
const CONTENDERS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const SHAPES = ["circle", "square", "triangle", "diamond", "hexagon", "cross"];

function stageLook(name) {
  if (!STAGES.has(name)) {
    const i = STAGES.size;
    STAGES.set(name, [`hsl(${Math.round(i * 137.5) % 360} 55% 55%)`, SHAPES[i % SHAPES.length]]);
  }
  const [colour, shape] = STAGES.get(name);
  return { colour, shape, ink: DARK.has(colour) ? "#fff" : "#0d1413" };
}

const contenderColour = (i) => CONTENDERS[i % CONTENDERS.length];

/** Path of a marker around (x, y); all shapes of one radius have about one area. */
function marker(shape, x, y, r) {
  const polygon = (corners, turn, radius) => {
    const points = Array.from({ length: corners }, (_, i) => {
      const angle = turn + (2 * Math.PI * i) / corners;
      return `${(x + radius * Math.cos(angle)).toFixed(2)} ${(y + radius * Math.sin(angle)).toFixed(2)}`;
    });
    return `M${points.join("L")}Z`;
  };
  if (shape === "square") return polygon(4, Math.PI / 4, 1.25 * r);
  if (shape === "triangle") return polygon(3, -Math.PI / 2, 1.45 * r);
  if (shape === "diamond") return polygon(4, 0, 1.25 * r);
  if (shape === "hexagon") return polygon(6, 0, 1.1 * r);
  if (shape === "cross") {
    const [arm, half] = [0.85 * r, 0.5 * r];
    const steps = `h${arm}v${-arm}h${2 * half}v${arm}h${arm}v${2 * half}h${-arm}v${arm}h${-2 * half}v${-arm}h${-arm}Z`;
    return `M${x - arm - half} ${y - half}${steps}`;
  }
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

const swatch = (colour, shape = "square") =>
  s(
    "svg",
    { class: "swatch", viewBox: "-8 -8 16 16", width: 12, height: 12, "aria-hidden": "true" },
    s("path", { d: marker(shape, 0, 0, 5.2), fill: colour }),
  );

/** Round numbers from low to high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** Round numbers from low to high for a logarithmic axis, at most `count`; if need be more, but powers of ten only. */
function logTicks(low, high, count) {
  const powers = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) powers.push(10 ** e);
  const inside = (steps) =>
    powers.flatMap((power) => steps.map((step) => step * power)).filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return (
    [
      [1, 1.5, 2, 3, 4, 5, 7],
      [1, 2, 5],
    ]
      .map(inside)
      .find((found) => found.length <= count) ?? inside([1])
  );
}
