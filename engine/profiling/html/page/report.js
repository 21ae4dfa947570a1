// The sections, from top to bottom.

function headline() {
  const [width, height] = profile.lr;
  const matched = profile.ref_scales * profile.refs.length;
  const references = `${profile.refs.length > 1 ? "references" : "reference"} ${profile.refs.map(size).join(", ")}`;
  const network = [profile.variant === fileName(profile.model) ? null : profile.variant, profile.trained ? null : "untrained"]
    .filter(Boolean)
    .map((word) => `${word}, `)
    .join("");
  return h(
    "header",
    {},
    h("p", { class: "kicker" }, `amsa ${profile.version} profile, ${profile.made.replace("T", " ").replace("+00:00", " UTC")}`),
    h("h1", { title: profile.model }, fileName(profile.model)),
    lead(
      `${network}LR ${size([width, height])} to ${size([4 * width, 4 * height])}, ${references}; ` +
        `restored from ${profile.restored} of ${matched} references at a scale.`,
    ),
    h("div", { class: "tiles" }, tiles()),
    profile.notes.length
      ? h(
          "p",
          { class: "lead" },
          h("a", { href: "#notes" }, plural(profile.notes.length, "note")),
          " on how to read these numbers.",
        )
      : null,
  );
}

function tiles() {
  const found = [];
  const [first, ...others] = measured;
  if (first) {
    found.push(tile(duration(first.latency.p50), `a picture, ${first.label}, median of ${first.latency.milliseconds.length}`));
    others.forEach((other, i) => {
      found.push(
        tile(times(ratios[i + 1]), `as long with ${other.label}; CPU time ${times(divide(other.cpu_ms, first.cpu_ms))}`),
      );
    });
    found.push(tile(`${number(first.peak_host_mb)} MB`, `peak memory, ${first.label}`));
  }
  for (const estimate of estimates) {
    found.push(
      tile(
        `${number(estimate.low_ms)} to ${number(estimate.high_ms)} ms`,
        `a picture on the ${estimate.gpu}, ${estimate.precision}`,
        badge(),
      ),
    );
  }
  return found;
}

function machineFacts() {
  return section(
    "machine",
    "Machine",
    h(
      "dl",
      {},
      Object.entries(profile.machine).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
  );
}

const layered = measured.filter((m) => m.layers.length);
const figures = measuredRooflines(layered);
const sections = [
  measured.length &&
    h(
      "div",
      { class: measured.length <= BESIDE ? "beside" : null },
      contenders(),
      h("div", {}, measured.some((m) => m.stages.length) && stages(), latency()),
    ),
  layered.length && layers(layered),
  figures.length && measuredRoofline(figures),
  estimates.length &&
    section(
      "estimates",
      "Estimates, not measured",
      lead("Computed from the model's graphs and the cards' published figures; nothing here was measured."),
      estimates.map((estimate, i) => estimateSection(estimate, cards[i])),
    ),
  profile.notes.length &&
    section(
      "notes",
      "Notes",
      h(
        "ul",
        {},
        profile.notes.map((note) => h("li", {}, note)),
      ),
    ),
  machineFacts(),
].filter(Boolean);

const main = h("main", {}, sections);
document.title = `${fileName(profile.model)}: amsa profile`;
document.getElementById("report").append(
  headline(),
  h(
    "nav",
    { "aria-label": "Sections" },
    [...main.querySelectorAll("section")].map((one) => h("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)),
  ),
  main,
);
redraw();
addEventListener("resize", () => redraw());
addEventListener("beforeprint", () => redraw(true));
addEventListener("afterprint", () => redraw());
