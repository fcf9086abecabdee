/* Reads the data, holds what is chosen, and fills the page. */

const data = JSON.parse(byId("data").textContent);
const { info, trials } = data;
const byNumber = new Map(trials.map((trial) => [trial.number, trial]));
const choiceIndex = Object.fromEntries(Object.entries(data.names).map(([kind, names]) => [kind, new Map(names.map((name, i) => [name, i]))]));
const front = data.front.map((number) => byNumber.get(number));
const whole = byNumber.get(data.baseline) ?? null;

const failed = trials.filter((trial) => trial.state === "failed");
const stopped = trials.filter((trial) => trial.kind === "stopped");
const late = trials.filter((trial) => trial.state === "complete" && trial.why);
const ARROW = info.direction === "minimize" ? "↓" : "↑";
const splits = [...new Set(trials.flatMap((trial) => Object.keys(trial.file?.metrics ?? {})))];

const X_AXES = [
  { key: "latency", label: "latency", title: "latency, share of the uncompressed model (faster is left) →", short: "latency, share →", name: "latency", value: (trial) => trial.ratio, text: (value) => `${times(value)} (${milliseconds(value * info.reference_ms)})`, tick: (value, step) => tickText(value, step) + "×", budget: info.budget_ratio },
  { key: "ms", label: "ms", title: "latency, ms →", short: "latency, ms →", name: "latency", value: (trial) => latencyOf(trial)?.ms, text: milliseconds, tick: tickText, budget: known(info.budget_ratio) ? info.budget_ratio * info.reference_ms : null },
  { key: "size", label: "file size", title: "size of the file, MiB →", short: "file, MiB →", name: "size", value: (trial) => trial.size_mib, text: (value) => `${significant(value)} MiB`, tick: tickText, budget: null },
  { key: "memory", label: "memory", title: "memory to run it, MiB (exported points only) →", short: "memory, MiB →", name: "memory", value: (trial) => trial.file?.memory_mib, text: (value) => `${significant(value)} MiB`, tick: tickText, budget: null },
  { key: "macs", label: "multiplications", title: "multiply-accumulates →", short: "multiply-accumulates →", name: "multiply-accumulates", value: (trial) => trial.n_macs || null, text: counted, tick: counted, budget: null },
  { key: "params", label: "parameters", title: "parameters →", short: "parameters →", name: "parameters", value: (trial) => trial.n_params || null, text: counted, tick: counted, budget: null },
].filter((axis) => axis.key === "latency" || trials.some((trial) => known(axis.value(trial))));
const yTick = (value, step) => (info.is_share ? tickText(100 * value, 100 * step) + "%" : tickText(value, step));
const Y_AXES = [
  { key: "search", label: `${info.metric}, selection split`, title: `${ARROW} ${info.metric} on the selection split (all trials)`, short: `${ARROW} ${info.metric}, selection`, name: `${info.metric} on selection`, value: (trial) => trial.score, text: metricText, tick: yTick, interval: () => null },
  ...splits.map((split) => ({ key: split, label: `${info.metric}, ${split} split, from files`, title: `${ARROW} ${info.metric} on the ${split} split (exported points, with 95% interval)`, short: `${ARROW} ${info.metric}, ${split}`, name: `${info.metric} on ${split}`, value: (trial) => trial.file?.metrics[split]?.[info.metric], text: metricText, tick: yTick, interval: (trial) => trial.file?.intervals[split] })),
];

const state = { x: X_AXES[0], y: Y_AXES[0], budget: null, selected: null, beside: null };
const rowOf = new Map(); // trial number -> its row in the front's table
const plot = new Plot(byId("plot"), choose);

function choose(number) {
  const trial = byNumber.get(number) ?? null;
  const beside = byNumber.get(state.beside) ?? null;
  showDetails(trial);
  showSideBySide(trial, beside, compareWith);
  showWhy(trial);
  showLayers(trial, beside);
  rowOf.get(state.selected)?.classList.remove("chosen");
  rowOf.get(number)?.classList.add("chosen");
  state.selected = number;
  plot.update(state.budget, number, state.beside);
  remember();
}

function compareWith(number) {
  state.beside = number;
  choose(state.selected);
  byId("side-by-side").querySelector("select").focus();
}

/** What is chosen stands in the address, so that a page can be passed on as it is, and survives a refresh. */
function remember() {
  const parts = { trial: state.selected, beside: state.beside, x: state.x.key, y: state.y.key };
  const text = Object.entries(parts).filter(([, value]) => value !== null && value !== undefined).map(([key, value]) => `${key}=${value}`).join("&");
  history.replaceState(null, "", `#${text}`);
}

function recalled() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const trial = (key) => (parts.has(key) && byNumber.has(Number(parts.get(key))) ? Number(parts.get(key)) : null);
  return { x: X_AXES.find((axis) => axis.key === parts.get("x")), y: Y_AXES.find((axis) => axis.key === parts.get("y")), selected: trial("trial"), beside: trial("beside") };
}

function drawPlot() {
  plot.draw({ trials, front: new Set(data.front), knee: data.knee, x: state.x, y: state.y, zoom: byId("zoom").checked, minimized: info.direction === "minimize", runBudget: state.x.budget });
  byId("outside").textContent = plot.nOutside ? `${plot.nOutside} of ${plot.nOutside + plot.points.length} trials lie outside this picture.` : "";
  plot.update(state.budget, state.selected, state.beside);
}

const choosableTrials = () => [...new Set([...front, whole])].filter(Boolean);

/** Points that a budget can choose: the front and the uncompressed model, with a place on this axis. */
const choosable = () => choosableTrials().filter((trial) => known(state.x.value(trial)) && known(trial.score));

/** Puts the slider at a budget and chooses the best point within it. */
const isBetter = (value, other) => (info.direction === "minimize" ? value < other : value > other);

function setBudget(budget) {
  const fits = choosable().filter((trial) => state.x.value(trial) <= budget);
  state.budget = budget;
  const best = fits.reduce((best, trial) => (best === null || isBetter(trial.score, best.score) ? trial : best), null);
  const limit = `${state.x.name} up to ${state.x.text(budget)}`;
  byId("budget-value").textContent = best ? `${limit} → best: ${best === whole ? "the uncompressed model" : `trial ${best.number}`}, ${metricText(best.score)}` : `${limit}: no point of the front is that small`;
  if (best) choose(best.number);
  else plot.update(budget, state.selected, state.beside);
}

/** The slider spans the plot's axis, so that its thumb stands under the line that it moves. */
function readSlider() {
  setBudget(plot.x.low + (Number(byId("budget").value) / 1000) * (plot.x.high - plot.x.low));
}

function placeSlider(budget) {
  byId("budget").value = Math.round((1000 * (budget - plot.x.low)) / (plot.x.high - plot.x.low));
}

function resetSlider() {
  const slider = byId("budget");
  slider.disabled = !choosable().length;
  if (slider.disabled) return void (byId("budget-value").textContent = "there is no point to choose");
  const budget = known(state.x.budget) ? state.x.budget : plot.x.high;
  placeSlider(budget);
  setBudget(budget);
}

function fillHeader() {
  const kept = front.filter((trial) => trial !== whole);
  const task = info.task.replace(/^.*\/(?=[^/]*\.py:)/, "");
  byId("title").textContent = kept.length ? `${task}: ${kept.length} compressed ${kept.length === 1 ? "model" : "models"} to choose from` : `${task}: compressed models`;
  const goal = known(info.budget_ratio) ? ` The search was asked for at most ${times(info.budget_ratio)} of the uncompressed latency, ${milliseconds(info.budget_ratio * info.reference_ms)}.` : "";
  byId("lead").textContent = kept.length ? `Each diamond is a model that is ready to run, measured from its file by ${info.runtime} on the machine named below. Further left is faster, further up is better; the black square is the model as it was. Drag the budget or click a diamond.${goal}` : "";
  const count = (list, text) => (list.length ? [`${list.length.toLocaleString("en")} ${text}`] : []);
  byId("counts").textContent = [...count(trials, trials.length === 1 ? "trial" : "trials"), ...count(front, "on the front"), ...count(late, "outside the limits"), ...count(stopped, "stopped early"), ...count(failed, "failed")].join(" · ");
  const missing = trials.length ? "No trial has both a latency and a score yet, so there is no front." : "No trial has ended yet. Run the search, or resume it.";
  byId("reason").textContent = data.reason || (front.length ? "" : missing);
  byId("reason").hidden = !byId("reason").textContent;
}

function fillControls() {
  X_AXES.forEach((axis) => {
    const input = el("input", { type: "radio", name: "x", value: axis.key, checked: axis === state.x });
    input.addEventListener("change", () => { state.x = axis; drawPlot(); resetSlider(); });
    byId("x-axis").append(el("label", {}, input, el("span", {}, axis.label)));
  });
  const select = byId("y-axis");
  select.append(...Y_AXES.map((axis) => el("option", { value: axis.key, selected: axis === state.y }, axis.label)));
  select.addEventListener("change", () => { state.y = Y_AXES.find((axis) => axis.key === select.value); drawPlot(); remember(); });
  byId("zoom").addEventListener("change", () => { drawPlot(); placeSlider(state.budget); });
  byId("budget").addEventListener("input", readSlider);
  const present = new Set(trials.map((trial) => trial.kind));
  byId("legend").append(...["front", "baseline", "uniform", "trial", "stopped", "infeasible"].filter((kind) => present.has(kind)).map((kind) =>
    el("li", {}, svg("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" }, svg("path", { d: SHAPES[kind], class: `point ${kind}` })), KIND_TEXT[kind])));
}

function fillFrontTable() {
  const further = splits.filter((split) => !["test", "selection"].includes(split));
  const ofSplit = (trial, split) => numberCell(metricText(trial.file?.metrics[split]?.[info.metric]));
  const rows = choosableTrials().map((trial) => {
    const latency = latencyOf(trial);
    const button = el("button", { type: "button", onclick: () => choose(trial.number) }, trial === whole ? "uncompressed" : `${trial.number}`);
    const row = el("tr", {}, el("td", {}, button),
      ofSplit(trial, "test"), ...further.map((split) => ofSplit(trial, split)), numberCell(metricText(trial.score)), numberCell(trial.file ? gapText(trial) : DASH),
      numberCell(latency ? milliseconds(latency.ms) : DASH), numberCell(latency ? `${times(latency.ratio)} ± ${significant(latency.spread, 1)}` : DASH),
      numberCell(significant(trial.size_mib)), numberCell(significant(trial.file?.memory_mib)), el("td", {}, trial.what + (trial.number === data.knee ? " (good trade)" : "")));
    rowOf.set(trial.number, row);
    return row;
  });
  const heads = ["trial", numberHead(`${info.metric}, test`), ...further.map((split) => numberHead(split)), numberHead("selection"), numberHead("gap"), numberHead("latency"), numberHead("share"), numberHead("file, MiB"), numberHead("memory, MiB"), "what was done"];
  byId("front-table").append(rows.length ? table(heads, rows) : el("p", {}, "The front is empty."));
}

const from = recalled();
state.x = from.x ?? state.x;
state.y = from.y ?? state.y;
state.beside = from.beside;
fillHeader();
fillControls();
fillFrontTable();
fillRest();
showSensitivity();
drawPlot();
drawProgress();
drawPredicted();
choose((front[0] ?? whole ?? trials[0])?.number ?? null);
resetSlider();
if (from.selected !== null) choose(from.selected);
let redraw = null;
let drawnWidth = innerWidth;
addEventListener("resize", () => {
  clearTimeout(redraw);
  redraw = setTimeout(() => {
    if (innerWidth === drawnWidth) return;
    drawnWidth = innerWidth;
    for (const draw of [drawPlot, drawProgress, drawPredicted]) draw();
  }, 120);
});
