"use strict";

// Plots: the templates have DVC's anchors, which are filled as DVC fills them.

const data = JSON.parse(document.getElementById("data").textContent);
const SERIES = [1, 2, 3, 4, 5, 6, 7].map((number) => `var(--series-${number})`);
const BY_BACKEND = { field: "backend", type: "nominal", title: null, scale: { range: SERIES } };
const CONFIG = {
  background: "transparent",
  font: "system-ui, sans-serif",
  aria: false, // the element around it says what it is; the tables say the figures
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", domainColor: "var(--faint)", tickColor: "var(--faint)",
    gridColor: "var(--line)", gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 200,
  },
  legend: {
    labelColor: "currentColor", titleColor: "currentColor", orient: "top", labelFontSize: 12, symbolSize: 90,
    direction: "horizontal",
  },
  text: { color: "currentColor", fill: "currentColor" },
  rule: { color: "currentColor" },
  line: { color: "currentColor" },
  view: { stroke: null },
};

function filled(template, anchors) {
  const fill = (_, value) => {
    if (typeof value !== "string") return value;
    const whole = /^<DVC_METRIC_(\w+)>$/.exec(value);
    if (whole) return anchors[whole[1]] ?? "";
    return value.replace(/<DVC_METRIC_(\w+)>/g, (_, name) => anchors[name]);
  };
  const { DATA, ...rest } = anchors;
  return { ...JSON.parse(JSON.stringify(template), (key, value) => fill(key, value)), data: { values: DATA } };
}

function byId(id) {
  return document.getElementById(id);
}

function logarithmic(rows, field) {
  const ends = rows.flatMap((row) => [row[field], row[`${field}_low`]]).filter((value) => value !== undefined);
  return ends.length > 0 && ends.every((value) => value > 0);
}

// Artifacts that no other beats on both axes: as good on each, and better on one.
function front(rows, x, y) {
  const both = rows.filter((row) => row[x.field] !== undefined && row[y.field] !== undefined);
  const gain = (axis, one, other) => (axis.better === "less" ? other : one)[axis.field] - (axis.better === "less" ? one : other)[axis.field];
  const beats = (one, other) =>
    gain(x, one, other) >= 0 && gain(y, one, other) >= 0 && (gain(x, one, other) > 0 || gain(y, one, other) > 0);
  return new Set(both.filter((row) => !both.some((other) => beats(other, row))));
}

// Labels that lie on each other cannot be read: Vega moves them apart, which Vega-Lite cannot say.
function apart(spec) {
  const visit = (marks) => {
    for (const mark of marks ?? []) {
      if (mark.name === "labels_marks") {
        const moved = { type: "label", size: { signal: "[width, height]" }, avoidMarks: ["points_marks"], padding: null,
          anchor: ["top-right", "right", "bottom-right", "top", "bottom", "top-left", "left", "bottom-left"], offset: [9, 8, 9, 8, 8, 9, 8, 9] };
        mark.transform = [moved];
        for (const set of Object.values(mark.encode)) for (const place of ["dx", "dy", "align"]) delete set[place];
      }
      visit(mark.marks);
    }
  };
  visit(spec.marks);
  return spec;
}

async function draw(name, label, spec, patch) {
  const place = document.querySelector(`#${name} .plot`);
  spec.autosize = { type: "fit-x", contains: "padding" };
  spec.width = place.clientWidth;
  spec.config = { legend: { columns: spec.width < 480 ? 3 : 7 } };
  delete spec.title;
  const tooltip = { disableDefaultStyle: true };
  // `ast` has Vega interpret expressions: the page's policy lets it compile none.
  await vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, ast: true, config: CONFIG, tooltip, patch });
  place.setAttribute("role", "img"); // Vega has words of its own for both
  place.setAttribute("aria-label", label);
}

function tradeoff() {
  const [x, y] = ["x", "y"].map((side) => data.axes.find((axis) => axis.field === byId(`tradeoff-${side}`).value));
  const best = front(data.artifacts, x, y);
  const rows = data.artifacts.map((row) => ({ ...row, front: best.has(row) }));
  const words = (axis) => `${axis.title} (${axis.better} is better)`;
  const spec = filled(data.templates.tradeoff, {
    DATA: rows, X: x.field, Y: y.field, X_LABEL: words(x), Y_LABEL: words(y), COLOR: BY_BACKEND,
  });
  for (const [side, axis] of [["x", x], ["y", y]]) {
    if (axis.logarithmic && logarithmic(rows, axis.field)) spec.encoding[side].scale.type = "log";
  }
  return draw("tradeoff", `Scatter plot of ${x.title} and ${y.title} of ${rows.length} artifacts`, spec, apart);
}

function throughput() {
  const choice = byId("throughput-x");
  const title = choice.selectedOptions[0].textContent;
  const spec = filled(data.templates.throughput, {
    DATA: data.levels, X: choice.value, Y: "artifact", X_LABEL: title, COLOR: { value: "var(--accent)" },
  });
  return draw("throughput", `${title} of each artifact at each number of streams`, spec);
}

function waits() {
  const choice = byId("waits-x");
  const load = byId("waits-streams");
  const title = choice.selectedOptions[0].textContent;
  const rows = data.waits.filter((row) => row.streams === Number(load.value))
    .flatMap((row) => row[choice.value].map((value) => ({ artifact: row.artifact, [choice.value]: value })));
  const spec = filled(data.templates.waits, {
    DATA: rows, X: choice.value, Y: "artifact", X_LABEL: `${title} at ${load.selectedOptions[0].textContent}, ms`, COLOR: { value: "var(--accent)" },
  });
  if (!logarithmic(rows, choice.value)) spec.layer[0].encoding.x.scale.type = "linear";
  return draw("waits", `${title} of requests at ${load.selectedOptions[0].textContent}, in milliseconds`, spec);
}

const plots = Object.fromEntries(Object.entries({ tradeoff, throughput, waits }).filter(([name]) => byId(name)));
let width = 0;

function drawAll() {
  width = document.body.clientWidth;
  return Promise.all(Object.values(plots).map((plot) => plot()));
}

for (const [name, plot] of Object.entries(plots)) {
  byId(name).querySelector(".controls").hidden = false;
  for (const select of byId(name).querySelectorAll("select")) select.addEventListener("change", plot);
}
addEventListener("resize", () => {
  if (document.body.clientWidth !== width) drawAll();
});
drawAll().then(() => document.body.setAttribute("data-drawn", ""));
