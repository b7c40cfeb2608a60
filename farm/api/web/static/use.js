// Draws what an attempt at a job used: elements with data-samples, as `GET /v1/jobs/{id}/samples` has an attempt.

const GIB = 2 ** 30;
const PANELS = [
  { title: "CPUs in use", lines: [["cpus", "job", 1]] },
  { title: "Memory, GiB", lines: [["memory_bytes", "job", 1 / GIB], ["gpu_memory_bytes", "GPU", 1 / GIB]] },
  { title: "GPU in use, %", lines: [["gpu_share", "GPU", 100]] },
  { title: "Power, W", lines: [["gpu_power_w", "GPU", 1]] },
  { title: "SM clock, MHz", lines: [["gpu_clock_mhz", "GPU", 1]] },
];
const HEIGHT = 170;
const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isKnown = (seen) => ([name]) => (seen[name] || []).some((value) => value !== null);
const told = (value) => (value === null || value === undefined ? "–" : value.toPrecision(3));

function panel(place, { title, lines }, seen) {
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const colours = [colour("--link"), colour("--warn")];
  const series = lines.map(([, label], at) => ({
    label, stroke: colours[at], width: 2, dash: at ? [6, 4] : undefined, value: (_, value) => told(value),
  }));
  const options = {
    title, width: place.clientWidth, height: HEIGHT, cursor: { sync: { key: place.parentElement.id } },
    scales: { x: { time: false }, y: { range: (_, least, most) => [0, most > 0 ? most * 1.1 : 1] } },
    axes: [{ ...axis, values: (_, at) => at.map((value) => `${value} s`) }, axis],
    series: [{ label: "after", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)} s`) }, ...series],
  };
  return new uPlot(options, columns(lines, seen), place);
}

function columns(lines, seen) {
  const scaled = lines.map(([name, , scale]) => seen[name].map((value) => (value === null ? null : value * scale)));
  return [seen.at_s, ...scaled];
}

function draw(chart) {
  const text = chart.dataset.samples;
  const seen = JSON.parse(text);
  const panels = PANELS.map((one) => ({ ...one, lines: one.lines.filter(isKnown(seen)) })).filter((one) => one.lines.length);
  const shape = JSON.stringify(panels) + colour("--front");
  const before = drawn.get(chart);
  if (before && before.shape === shape) {
    if (before.text !== text) before.plots.forEach((plot, at) => plot.setData(columns(panels[at].lines, seen)));
    before.text = text;
    return;
  }
  if (before) before.plots.forEach((plot) => plot.destroy());
  chart.replaceChildren();
  const plots = panels.map((one) => {
    const place = document.createElement("div");
    chart.append(place);
    return panel(place, one, seen);
  });
  drawn.set(chart, { shape, text, plots });
}

function drawAll() {
  for (const chart of drawn.keys()) if (!chart.isConnected) drawn.delete(chart);
  document.querySelectorAll("[data-samples]").forEach(draw);
}

drawAll();
document.addEventListener("htmx:after:swap", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("resize", () => {
  for (const { plots } of drawn.values())
    for (const plot of plots) plot.setSize({ width: plot.root.parentElement.clientWidth, height: HEIGHT });
});
