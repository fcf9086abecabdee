"use strict";
/* Elements, scales and figures as text. Text from the data only ever enters the page through text nodes. */

const SVG = "http://www.w3.org/2000/svg";
const DASH = "–";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const el = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const named = (text) => el("bdi", { class: "path" }, text);
const byId = (id) => document.getElementById(id);

const known = (value) => typeof value === "number" && Number.isFinite(value);
const significant = (value, digits = 3) => (known(value) ? String(Number(value.toPrecision(digits))) : DASH);
const percent = (share, digits = 0) => (known(share) ? (100 * share).toFixed(digits) + "%" : DASH);
const milliseconds = (value) => (!known(value) ? DASH : value < 0.1 ? `${significant(1000 * value)} µs` : `${significant(value)} ms`);
const times = (ratio) => (known(ratio) ? ratio.toFixed(3) + "×" : DASH);

function counted(value) {
  const [divisor, unit] = value >= 1e9 ? [1e9, " G"] : value >= 1e6 ? [1e6, " M"] : value >= 1e3 ? [1e3, " k"] : [1, ""];
  return significant(value / divisor) + unit;
}

/* Of any number of values: spreading thousands into Math.min is slow and may overflow the stack. */
const least = (values) => values.reduce((low, value) => (value < low ? value : low), Infinity);
const most = (values) => values.reduce((high, value) => (value > high ? value : high), -Infinity);

/** [low, high] of the values with a share of their span as room at both ends. */
function spanned(values, room) {
  const [low, high] = values.length ? [least(values), most(values)] : [0, 1];
  const span = high - low || Math.abs(high) * 0.1 || 1;
  return [low - room * span, high + room * span];
}

/** A linear scale from [low, high] to pixels, with round ticks about `apart` pixels from each other. */
function scale(low, high, start, end, apart = 80) {
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * 0.05, low + (Math.abs(low) || 1) * 0.05];
  const toPixel = (value) => start + ((value - low) / (high - low)) * (end - start);
  const raw = (high - low) / Math.max(2, Math.abs(end - start) / apart);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return { low, high, step, ticks, toPixel };
}

/** Grid lines, tick labels and axis titles; returns the group. */
function axes(x, y, size, xTitle, yTitle, xText, yText) {
  const group = svg("g", { "aria-hidden": "true" });
  for (const tick of x.ticks) {
    const at = x.toPixel(tick);
    group.append(svg("line", { class: "grid", x1: at, x2: at, y1: size.top, y2: size.bottom }));
    group.append(svg("text", { x: at, y: size.bottom + 16, "text-anchor": "middle" }, xText(tick, x.step)));
  }
  for (const tick of y.ticks) {
    const at = y.toPixel(tick);
    group.append(svg("line", { class: "grid", x1: size.left, x2: size.right, y1: at, y2: at }));
    group.append(svg("text", { x: size.left - 6, y: at + 4, "text-anchor": "end" }, yText(tick, y.step)));
  }
  group.append(svg("text", { class: "axis", x: size.right, y: size.bottom + 34, "text-anchor": "end" }, xTitle));
  group.append(svg("text", { class: "axis", x: 2, y: 12 }, yTitle));
  return group;
}

/** A tick's text with as many digits as the step between ticks needs. */
const tickText = (value, step) => value.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))));

function table(head, rows) {
  const cell = (tag) => (value) => (value instanceof Element && /^T[DH]$/.test(value.tagName) ? value : el(tag, {}, value));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head.map(cell("th")))), el("tbody", {}, ...rows.map((row) => (row instanceof Element ? row : el("tr", {}, ...row.map(cell("td")))))));
}
const numberCell = (text) => el("td", { class: "number" }, text);
const numberHead = (text) => el("th", { class: "number" }, text);

const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** A folded part that stays as the reader left it while points are chosen. */
const openParts = new Map();
function opened(key, title, make, atFirst = false) {
  const part = el("details", { open: openParts.get(key) ?? atFirst }, el("summary", {}, title), ...make());
  part.addEventListener("toggle", () => openParts.set(key, part.open));
  return part;
}

function copyButton(text, what) {
  const button = el("button", { type: "button", "aria-label": `Copy: ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copyText(text);
    button.textContent = done ? "Copied" : "Select and copy";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

/** The clipboard is not offered on every file:// page; then a hidden text field does it. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = el("textarea", { readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
