"use strict";
// What all sections use. Text reaches the page through textContent alone.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
};
const hidden = (text) => make("span", { class: "heard" }, text);
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const number = (value) => Number(value.toPrecision(4)).toLocaleString("en");
const written = (figure, value) => (value === null || value === undefined ? "–" : figure.percent ? percent(value) : number(value));
const notes = (said) => (said.length ? make("div", { class: "notes" }, ...said.map((text) => make("p", {}, text))) : null);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const sections = {};

const theme = {
  names: { auto: "Auto", light: "Light", dark: "Dark" },
  button: document.getElementById("theme"),
  dark: matchMedia("(prefers-color-scheme: dark)"),
  set(name) {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    this.name = name;
    this.button.textContent = this.names[name];
    this.button.setAttribute("aria-label", `Colours: ${this.names[name].toLowerCase()}. Press to change`);
    document.dispatchEvent(new Event("colours"));
  },
  start() {
    let name = "auto";
    try { name = localStorage.getItem("lmms-textweighted-colours") || "auto"; } catch { /* a file may have no storage */ }
    this.set(name in this.names ? name : "auto");
    this.dark.addEventListener("change", () => document.dispatchEvent(new Event("colours")));
    this.button.addEventListener("click", () => {
      const order = Object.keys(this.names);
      const next = order[(order.indexOf(this.name) + 1) % order.length];
      this.set(next);
      try { localStorage.setItem("lmms-textweighted-colours", next); } catch { /* likewise */ }
    });
  },
};

// The marks of matplotlib as plotly calls them, and as the points of a polygon in a box from -1 to 1.
const MARKS = {
  o: ["circle", null], s: ["square", [[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]],
  D: ["diamond", [[0, -1], [1, 0], [0, 1], [-1, 0]]], d: ["diamond-tall", [[0, -1], [0.65, 0], [0, 1], [-0.65, 0]]],
  "^": ["triangle-up", [[0, -1], [1, 0.8], [-1, 0.8]]], v: ["triangle-down", [[0, 1], [1, -0.8], [-1, -0.8]]],
  "<": ["triangle-left", [[-1, 0], [0.8, -1], [0.8, 1]]], ">": ["triangle-right", [[1, 0], [-0.8, -1], [-0.8, 1]]],
  P: ["cross", [[-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35], [1, 0.35], [0.35, 0.35], [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35], [-1, -0.35], [-0.35, -0.35]]],
  X: ["x", [[-0.5, -1], [0, -0.5], [0.5, -1], [1, -0.5], [0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5], [-0.5, 1], [-1, 0.5], [-0.5, 0], [-1, -0.5]]],
  p: ["pentagon", 5], h: ["hexagon", 6], 8: ["octagon", 8], "*": ["star", "star"],
};
const regular = (corners, radii) => Array.from({ length: corners * radii.length }, (_, place) => {
  const angle = (2 * Math.PI * place) / (corners * radii.length) - Math.PI / 2;
  return [Math.cos(angle) * radii[place % radii.length], Math.sin(angle) * radii[place % radii.length]];
});
const swatch = (color, marker) => {
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const shape = (MARKS[marker] || MARKS.o)[1];
  const points = shape === "star" ? regular(5, [1, 0.45]) : typeof shape === "number" ? regular(shape, [1]) : shape;
  const node = svg("svg", { viewBox: "-1.2 -1.2 2.4 2.4", width: 12, height: 12, "aria-hidden": "true" });
  const fill = ink(color);
  node.append(points ? svg("polygon", { points: points.map((pair) => pair.join()).join(" "), fill }) : svg("circle", { r: 0.95, fill }));
  return node;
};
// Black is what text is written in: white where the page is dark.
const ink = (color) => (color === "#000000" ? "currentColor" : color);
