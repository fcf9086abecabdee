/* Reads the data, holds what is chosen, and fills the page. */

const data = JSON.parse(byId("data").textContent);
const { info, trials } = data;
const byNumber = new Map(trials.map((trial) => [trial.number, trial]));
const choiceIndex = Object.fromEntries(Object.entries(data.names).map(([kind, names]) => [kind, new Map(names.map((name, i) => [name, i]))]));
const front = data.front.map((number) => byNumber.get(number));
const whole = byNumber.get(data.baseline) ?? null;

const failed = trials.filter((trial) => trial.state === "failed");
const late = trials.filter((trial) => trial.state !== "failed" && trial.why);

const X_AXES = [
  { title: "latency, share of the uncompressed model →", name: "latency", value: (trial) => trial.ratio, text: times, tick: tickText, budget: info.budget_ratio },
  { title: "latency, ms →", name: "latency", value: (trial) => latencyOf(trial)?.ms, text: (value) => `${significant(value)} ms`, tick: tickText, budget: known(info.budget_ratio) ? info.budget_ratio * info.reference_ms : null },
  { title: "size of the file, MiB →", name: "size", value: (trial) => trial.size_mib, text: (value) => `${significant(value)} MiB`, tick: tickText, budget: null },
  { title: "multiply-accumulates →", name: "multiply-accumulates", value: (trial) => trial.n_macs || null, text: counted, tick: counted, budget: null },
  { title: "parameters →", name: "parameters", value: (trial) => trial.n_params || null, text: counted, tick: counted, budget: null },
];
const yTick = (value, step) => (info.is_share ? tickText(100 * value, 100 * step) + "%" : tickText(value, step));
const Y_AXES = [
  { title: `↑ ${info.metric}, selection split (all trials)`, name: `${info.metric} on selection`, value: (trial) => trial.score, text: metricText, tick: yTick, interval: () => null },
  { title: `↑ ${info.metric}, test split (exported points only)`, name: `${info.metric} on test`, value: (trial) => trial.file?.metrics.test?.[info.metric], text: metricText, tick: yTick, interval: (trial) => trial.file?.intervals.test },
];

const state = { x: X_AXES[0], y: Y_AXES[0], budget: null, selected: null, beside: null };
const rowOf = new Map(); // trial number -> its row in the front's table
const plot = new Plot(byId("plot"), choose);

function choose(number) {
  const trial = byNumber.get(number) ?? null;
  const beside = byNumber.get(state.beside) ?? null;
  showDetails(trial, beside, keep);
  showLayers(trial, beside);
  rowOf.get(state.selected)?.classList.remove("chosen");
  rowOf.get(number)?.classList.add("chosen");
  state.selected = number;
  plot.update(state.budget, number, state.beside);
}

function keep() {
  state.beside = state.beside === state.selected ? null : state.selected;
  choose(state.selected);
}

function drawPlot() {
  plot.draw({ trials, front: new Set(data.front), x: state.x, y: state.y, zoom: byId("zoom").checked, runBudget: state.x.budget });
  byId("outside").textContent = plot.nOutside ? `${plot.nOutside} of ${plot.nOutside + plot.points.length} trials lie outside this picture.` : "";
  plot.update(state.budget, state.selected, state.beside);
}

/** Points that a budget can choose: the front and the uncompressed model, with a place on this axis. */
const choosable = () => [...new Set([...front, whole])].filter((trial) => trial && known(state.x.value(trial)) && known(trial.score));

function sliderRange() {
  const values = choosable().map(state.x.value);
  if (known(state.x.budget)) values.push(state.x.budget);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || high) * 0.03;
  return [low - room, high + room];
}

/** Puts the slider at a budget and chooses the best point within it. */
function setBudget(budget) {
  const fits = choosable().filter((trial) => state.x.value(trial) <= budget);
  state.budget = budget;
  const best = fits.reduce((best, trial) => (best === null || trial.score > best.score ? trial : best), null);
  const limit = `${state.x.name} up to ${state.x.text(budget)}`;
  byId("budget-value").textContent = best ? `${limit} → trial ${best.number}, ${metricText(best.score)}` : `${limit}: no point of the front is that small`;
  if (best) choose(best.number);
  else plot.update(budget, state.selected, state.beside);
}

function readSlider() {
  const [low, high] = sliderRange();
  setBudget(low + (Number(byId("budget").value) / 1000) * (high - low));
}

function resetSlider() {
  const slider = byId("budget");
  slider.disabled = !choosable().length;
  if (slider.disabled) return void (byId("budget-value").textContent = "there is no point to choose");
  const [low, high] = sliderRange();
  const budget = known(state.x.budget) ? state.x.budget : high;
  slider.value = Math.round((1000 * (budget - low)) / (high - low || 1));
  setBudget(budget);
}

function fillHeader() {
  byId("title").textContent = `${info.task}: pick a compressed model`;
  const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
  const counts = [count(trials.length, "trial", "trials"), `${front.length} on the front`, `${late.length} over the budget`, `${failed.length} failed`];
  const goal = known(info.budget_ratio) ? `Budget: ${times(info.budget_ratio)} of the uncompressed latency, ${significant(info.budget_ratio * info.reference_ms)} ms.` : "No latency budget was set.";
  const meaning = front.length ? `No other trial${known(info.budget_ratio) ? " within the budget" : ""} is both faster and better than a point on the front.` : "";
  byId("lead").textContent = `${counts.join(", ")}. ${goal} ${meaning}`;
  const missing = trials.length ? "No trial has both a latency and a score yet, so there is no front." : "No trial has ended yet. Run the search, or resume it.";
  byId("reason").textContent = data.reason || (front.length ? "" : missing);
  byId("reason").hidden = !byId("reason").textContent;
}

function fillControls() {
  for (const [id, axis, choices] of [["x-axis", "x", X_AXES], ["y-axis", "y", Y_AXES]]) {
    const select = byId(id);
    select.append(...choices.map((choice, i) => el("option", { value: i }, choice.title.replace(/[→↑]/g, "").trim())));
    select.addEventListener("change", () => {
      state[axis] = choices[select.value];
      drawPlot();
      if (axis === "x") resetSlider();
    });
  }
  byId("zoom").addEventListener("change", drawPlot);
  byId("budget").addEventListener("input", readSlider);
  const present = new Set(trials.map((trial) => trial.kind));
  byId("legend").append(...Object.keys(SHAPES).filter((kind) => present.has(kind)).map((kind) =>
    el("li", {}, svg("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" }, svg("path", { d: SHAPES[kind], class: `point ${kind}` })), KIND_TEXT[kind])));
}

function fillFrontTable() {
  const rows = [...new Set([whole, ...front])].filter(Boolean).map((trial) => {
    const latency = latencyOf(trial);
    const button = el("button", { type: "button", onclick: () => choose(trial.number) }, `${trial.number}`);
    const row = el("tr", {}, el("td", {}, button),
      numberCell(metricText(trial.file?.metrics.test?.[info.metric])), numberCell(metricText(trial.score)), numberCell(latency ? significant(latency.ms) : DASH),
      numberCell(latency ? `${times(latency.ratio)} ± ${significant(latency.spread, 2)}` : DASH), numberCell(significant(trial.size_mib)), el("td", {}, trial.what));
    rowOf.set(trial.number, row);
    return row;
  });
  const heads = ["trial", numberHead(`${info.metric} on test`), numberHead("on selection"), numberHead("latency, ms"), numberHead("share"), numberHead("MiB"), "what was done"];
  byId("front-table").append(rows.length ? table(heads, rows) : el("p", {}, "The front is empty."));
}

function drawProgress() {
  const place = byId("progress");
  const history = data.hypervolume;
  if (!history.length) return place.replaceChildren(el("p", {}, "No trial has ended yet."));
  const width = Math.max(280, place.clientWidth);
  const size = { left: 52, right: width - 14, top: 24, bottom: 158 };
  const x = scale(0, history.at(-1)[0], size.left, size.right);
  const y = scale(0, Math.max(...history.map((step) => step[2])) * 1.05 || 1, size.bottom, size.top, 40);
  const steps = history.map(([n, , area], i) => `${i ? "H" + x.toPixel(n) : "M" + x.toPixel(0) + "," + y.toPixel(0) + "H" + x.toPixel(n)}V${y.toPixel(area)}`).join("");
  const summary = `Hypervolume ${significant(history.at(-1)[2], 4)} after ${history.length} trials and ${significant(history.at(-1)[1] / 60)} minutes`;
  place.replaceChildren(svg("svg", { viewBox: `0 0 ${width} 200`, height: 200, role: "img", "aria-label": summary },
    axes(x, y, size, "trials ended →", "↑ hypervolume", (n) => (Number.isInteger(n) ? n : ""), tickText), svg("path", { class: "front-line", d: steps })), el("p", { class: "quiet" }, summary + "."));
}

/** A folded part whose content is made when it is first opened. */
function folded(title, make) {
  const part = el("details", {}, el("summary", {}, title));
  part.addEventListener("toggle", () => part.append(make()), { once: true });
  return part;
}

const pairs = (values) => el("div", { class: "scroll" }, table(["", ""], Object.entries(values).map(([key, value]) => [named(key), value])));

function fillRest() {
  const place = byId("rest");
  const listed = (rows) => el("div", { class: "scroll" }, table(["trial", "why", "what was asked"], rows));
  if (failed.length) place.append(folded(`Failed trials: ${failed.length}`, () => listed(failed.map((trial) => [trial.number, el("details", {}, el("summary", {}, trial.why), el("pre", {}, trial.error)), trial.what]))));
  if (late.length) place.append(folded(`Trials that are not within the budget: ${late.length}`, () => listed(late.map((trial) => [trial.number, trial.why, trial.what]))));
  if (info.frozen.length) place.append(folded(`Parts of the model that are left as they are: ${info.frozen.length}`, () => table(["part", "what stays", "why"], info.frozen.map((item) => [named(item.name), item.what, item.reason]))));
  place.append(folded("Settings", () => pairs(info.settings)));
  place.append(folded("Machine and versions", () => pairs({ ...info.machine, ...info.versions })));
  place.append(folded("This run", () => pairs({ started: info.started || DASH, "uncompressed latency": `${significant(info.reference_ms, 4)} ms`, "digest of the model": info.digests.model, "digest of the space": info.digests.space })));
  if (info.command) place.append(command("The command that started this search", info.command));
}

fillHeader();
fillControls();
fillFrontTable();
fillRest();
drawPlot();
drawProgress();
choose((front[0] ?? whole ?? trials[0])?.number ?? null);
resetSlider();
let redraw = null;
addEventListener("resize", () => {
  clearTimeout(redraw);
  redraw = setTimeout(() => { drawPlot(); drawProgress(); }, 120);
});
