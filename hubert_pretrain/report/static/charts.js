// Small helpers that build the page, and curves drawn by uPlot. Text of the run goes through
// textContent only, so no name of the run can become markup.
"use strict";

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

// The same for pictures: an SVG element.
function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(digits);
}

function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

function bytes(count) {
  if (!count) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toPrecision(3)} ${units[power]}`;
}

function table(header, rows, { words = [] } = {}) {
  return h("div", { class: "scroll" },
    h("table", {},
      h("thead", {}, h("tr", {}, header.map((name, column) =>
        h("th", { scope: "col", class: words.includes(column) ? "words" : null }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, column) =>
        h("td", words.includes(column) ? { class: "words" } : {},
          cell instanceof Node ? cell : String(cell ?? "–"))))))));
}

// lines: [{label, points: [steps, values], colour, dash, dots}], at: {label: height of a line}.
function chart(title, lines, { at = {}, from_zero = false, format = number } = {}) {
  const drawn = lines.filter((line) => line.points && line.points[0].length);
  const box = h("figure", { class: "chart card", style: "margin:0" },
    h("figcaption", { class: "title" }, title));
  if (!drawn.length) {
    box.append(h("p", { class: "dim small" }, "nothing logged"));
    return box;
  }
  const steps = [...new Set(drawn.flatMap((line) => line.points[0]))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const columns = drawn.map((line) => {
    const column = new Array(steps.length).fill(null);
    line.points[0].forEach((step, index) => { column[place.get(step)] = line.points[1][index]; });
    return column;
  });
  const levels = Object.entries(at).filter(([, height]) => height !== null && height !== undefined);
  for (const [, height] of levels) columns.push(steps.map(() => height));
  const axis = () => ({
    stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") },
  });
  const series = [
    { label: "step" },
    ...drawn.map((line) => ({
      label: line.label, stroke: colour(line.colour), width: 1.5, dash: line.dash, spanGaps: true,
      points: { show: Boolean(line.dots) || line.points[0].length < 3, size: 6 }, value: (_, value) => format(value),
    })),
    ...levels.map(([label]) => ({
      label, stroke: colour("dim"), width: 1, dash: [6, 4], points: { show: false },
      value: (_, value) => format(value),
    })),
  ];
  const target = h("div", {});
  box.append(target);
  const make = () => {
    if (box.plot) box.plot.destroy();
    const width = Math.max(200, box.clientWidth - 28);
    box.plot = new uPlot({
      width, height: 220, series,
      scales: { x: { time: false }, y: from_zero ? { range: (_, low, high) => [Math.min(0, low), high * 1.05 || 1] } : {} },
      axes: [axis(), { ...axis(), size: 56 }],
      cursor: { drag: { x: true, y: false } },
    }, [steps, ...columns], target);
  };
  box.make = make;
  return box;
}

// Charts need a width, so they are drawn when they are in the page, and again when it changes.
function draw_charts() {
  document.querySelectorAll(".chart").forEach((box) => { if (box.make) box.make(); });
}
