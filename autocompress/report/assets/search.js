/* The search behind the front: how it went, what was foreseen, what is sensitive, and what fell out. */

function drawProgress() {
  const place = byId("progress");
  const history = data.hypervolume;
  if (!history.length) return place.replaceChildren(el("p", {}, "No trial has ended yet."));
  const width = Math.max(280, place.clientWidth);
  const size = { left: 52, right: width - 14, top: 24, bottom: 178 };
  const minutes = history.map(([, seconds]) => seconds / 60);
  const x = scale(0, minutes.at(-1), size.left, size.right);
  const areas = history.map((step) => step[2]);
  const y = scale(0, most(areas) * 1.05 || 1, size.bottom, size.top, 40);
  const steps = areas.map((area, i) => `${i ? "H" + x.toPixel(minutes[i]) : "M" + x.toPixel(0) + "," + y.toPixel(0) + "H" + x.toPixel(minutes[i])}V${y.toPixel(area)}`).join("");
  const last = areas.at(-1);
  const settled = areas.findIndex((area) => area >= 0.99 * last);
  const flat = history.length - settled - 1;
  const verdict = last <= 0 ? "No trial within the limits is better than nothing yet." : flat > history.length / 3 ? `The last ${flat} of ${history.length} trials gained less than 1%: more trials would have gained little.` : `The front was still growing after ${settled + 1} of ${history.length} trials: a longer search may find more.`;
  const summary = `Hypervolume ${significant(last, 4)} after ${history.length} trials and ${significant(minutes.at(-1))} minutes. ${verdict}`;
  place.replaceChildren(el("p", {}, verdict), svg("svg", { viewBox: `0 0 ${width} 220`, height: 220, role: "img", "aria-label": summary },
    axes(x, y, size, "minutes →", "↑ hypervolume", tickText, tickText), svg("path", { class: "front-line", d: steps })),
    el("p", { class: "quiet" }, `The hypervolume is the area between the front and the corner “as slow as the uncompressed model, scoring 0”, from the search’s own figures on the selection split: ${significant(last, 4)} after ${history.length} trials and ${significant(minutes.at(-1))} minutes.`));
}

function drawPredicted() {
  const place = byId("predicted");
  const points = trials.filter((trial) => trial.predicted && known(trial.predicted[0]) && known(trial.latency?.ms)).map((trial) => ({ ms: trial.latency.ms, guess: trial.predicted[0], low: trial.predicted[1], high: trial.predicted[2] }));
  if (!points.length) return place.replaceChildren(el("p", {}, "This search used no latency profile, so nothing was predicted: every latency on this page was measured."));
  const errors = points.map((point) => Math.abs(point.guess - point.ms) / point.ms).sort((a, b) => a - b);
  const within = points.filter((point) => point.low <= point.ms && point.ms <= point.high).length / points.length;
  const summary = `Half of the predictions were within ${percent(errors[Math.floor(errors.length / 2)], 1)} of the measured latency; ${percent(within)} of ${points.length} trials lie inside the predicted interval.`;
  const width = Math.max(280, place.clientWidth);
  const size = { left: 52, right: width - 14, top: 24, bottom: 208 };
  const range = spanned(points.flatMap((point) => [point.ms, point.guess]), 0.05);
  const [x, y] = [scale(...range, size.left, size.right), scale(...range, size.bottom, size.top, 40)];
  const [lowest, highest] = range;
  const marks = points.flatMap((point) => [
    known(point.low) && known(point.high) ? svg("line", { class: "whisker", x1: x.toPixel(point.ms), x2: x.toPixel(point.ms), y1: y.toPixel(Math.max(lowest, point.low)), y2: y.toPixel(Math.min(highest, point.high)) }) : null,
    svg("circle", { class: "trial", cx: x.toPixel(point.ms), cy: y.toPixel(point.guess), r: 3 })]).filter(Boolean);
  place.replaceChildren(el("p", {}, summary), svg("svg", { viewBox: `0 0 ${width} 250`, height: 250, role: "img", "aria-label": summary },
    axes(x, y, size, "measured, ms →", "↑ predicted, ms", tickText, tickText),
    svg("line", { class: "diagonal", x1: x.toPixel(lowest), y1: y.toPixel(lowest), x2: x.toPixel(highest), y2: y.toPixel(highest) }), ...marks), el("p", { class: "quiet" }, "On the line, a prediction is exact; above it, too slow. Upright lines are the predicted intervals."));
}

const KNOB_TEXT = { prune_ratio: "channels off", rank_ratio: "rank kept", weight_bits: "bits", drop: "block dropped", sparsity: "zeros" };

/** Lightness follows the square root, so that small costs can be told apart. */
function showSensitivity() {
  const place = byId("sensitivity");
  const map = data.sensitivity;
  if (!map || !map.rows.length) return place.replaceChildren(el("p", {}, "This search did not measure what each single choice costs."));
  const worst = most(map.rows.flatMap(([, cells]) => cells).filter(known)) || 1;
  const heads = ["", ...map.columns.map(([knob, value]) => el("th", { class: "number", scope: "col" }, KNOB_TEXT[knob] ?? knob, el("br"), value === "True" ? "" : /^0\.\d+$/.test(value) ? percent(Number(value)) : value))];
  const rows = map.rows.map(([name, cells]) => el("tr", {}, el("th", { scope: "row" }, named(name)), ...cells.map((cell) => {
    const td = el("td", { class: "heat number" }, known(cell) ? significant(cell, 2) : "");
    if (known(cell)) td.style.setProperty("--heat", `${Math.round(100 * Math.sqrt(Math.max(0, cell) / worst))}%`);
    return td;
  })));
  place.replaceChildren(el("p", { class: "quiet" }, `How much the loss rises when this one choice is made and everything else stays (uncompressed: ${significant(map.baseline_loss)}${map.unit ? `, ${map.unit}` : ""}). Darker costs more; an empty cell was not measured.`), el("div", { class: "scroll" }, table(heads, rows)));
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
  const plain = (list) => () => listed(list.map((trial) => [trial.number, trial.why, trial.what]));
  if (failed.length) place.append(folded(`Failed trials: ${failed.length}`, () => listed(failed.map((trial) => [trial.number, el("details", {}, el("summary", {}, trial.why), el("pre", {}, trial.error)), trial.what]))));
  if (late.length) place.append(folded(`Trials outside the limits of the search: ${late.length}`, plain(late)));
  if (stopped.length) place.append(folded(`Trials stopped early: ${stopped.length}`, plain(stopped)));
  if (info.frozen.length) place.append(folded(`Parts of the model that are left as they are: ${info.frozen.length}`, () => table(["part", "what stays", "why"], info.frozen.map((item) => [named(item.name), item.what, item.reason]))));
  place.append(folded("Settings", () => pairs(info.settings)));
  place.append(folded("Machine and versions", () => pairs({ ...info.machine, ...info.versions })));
  place.append(folded("This run", () => pairs({ task: info.task, started: info.started || DASH, "uncompressed latency": `${significant(info.reference_ms, 4)} ms`, "digest of the model": info.digests.model, "digest of the space": info.digests.space })));
  if (info.command) place.append(command("The command that started this search", info.command));
}
