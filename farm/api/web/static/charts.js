// Draws each figure with data-chart from the JSON in the script of that id: series of figures by batch size.
"use strict";

const DASHES = [[], [], [2, 3], [8, 4], [8, 3, 2, 3], [4, 4], [12, 4], [2, 6], [6, 2]];
const plots = new Map();

function figure(value) {
  if (value == null) return "–";
  return value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

function draw(holder) {
  const { unit, batches, series } = JSON.parse(document.getElementById(holder.dataset.chart).textContent);
  const place = holder.querySelector(".plot");
  const colours = getComputedStyle(document.documentElement);
  const axis = { stroke: colours.getPropertyValue("--dim"), grid: { stroke: colours.getPropertyValue("--line"), width: 1 } };
  const options = {
    width: place.clientWidth,
    height: 260,
    scales: {
      x: { time: false, range: [-0.25, batches.length - 0.75] },
      y: { range: (_, low, high) => [0, (high || 1) * 1.08] },
    },
    axes: [
      { ...axis, splits: batches.map((_, at) => at), values: (_, splits) => splits.map((at) => batches[at] ?? "") },
      { ...axis, size: 60, values: (_, splits) => splits.map((value) => compact.format(value)) },
    ],
    series: [
      { label: "batch", value: (_, at) => (at == null ? "–" : batches[at]) },
      ...series.map(([name], at) => {
        const stroke = colours.getPropertyValue(`--series-${at % 6}`);
        return {
          label: name,
          stroke,
          width: 2,
          dash: DASHES[at % DASHES.length],
          points: { show: true, size: 7, fill: stroke },
          value: (_, value) => (value == null ? "–" : `${figure(value)} ${unit}`),
        };
      }),
    ],
  };
  plots.get(holder)?.destroy();
  plots.set(holder, new uPlot(options, [batches.map((_, at) => at), ...series.map(([, values]) => values)], place));
}

function drawAll() {
  for (const holder of document.querySelectorAll("[data-chart]")) draw(holder);
}

drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  requestAnimationFrame(drawAll);
});
