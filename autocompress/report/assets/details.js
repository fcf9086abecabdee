/* The chosen point: what it is in three figures, how to leave with it, and everything that was measured of it. */

const metricText = (value, digits = 2) => (info.is_share ? percent(value, digits) : significant(value, 4));
const latencyOf = (trial) => (trial.file ? trial.file.latency : trial.latency);
const signed = (value, text) => (value > 0 ? "+" : value < 0 ? "−" : "±") + text(Math.abs(value));
const differenceText = (value) => signed(value, (size) => (info.is_share ? `${(100 * size).toFixed(2)} points` : significant(size, 3)));
const intervalText = ([low, high]) => `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)}%`;

/** The metric on test where there is a file, else on selection: [value, split]. */
const bestKnown = (trial) => (trial.file && known(trial.file.metrics.test?.[info.metric]) ? [trial.file.metrics.test[info.metric], "test"] : [trial.score, "selection"]);

function tile(label, figure, ...lines) {
  return el("div", { class: "tile" }, el("div", { class: "what" }, label), el("div", { class: "figure" }, figure), ...lines.filter(Boolean).map((line) => el("div", { class: "quiet" }, line)));
}

function speedTile(trial) {
  const latency = latencyOf(trial);
  if (!latency || !known(latency.ratio)) return tile("Speed", DASH, "not measured");
  const own = trial === whole;
  const figure = own ? "1×" : latency.ratio <= 1 ? `${significant(1 / latency.ratio, 2)}× faster` : `${significant(latency.ratio, 2)}× slower`;
  return tile("Speed", figure, `${milliseconds(latency.ms)} a run` + (own || !whole ? "" : ` instead of ${milliseconds(latencyOf(whole)?.ms)}`));
}

function accuracyTile(trial) {
  const [value, split] = bestKnown(trial);
  const interval = trial.file?.intervals[split];
  const [before, beforeSplit] = whole ? bestKnown(whole) : [null, null];
  const change = trial !== whole && known(value) && known(before) && split === beforeSplit ? `${differenceText(value - before)} against ${metricText(before)}` : null;
  return tile(`${info.metric} (${split})`, metricText(value), change, interval && `95% sure: ${intervalText(interval)}`);
}

function sizeTile(trial) {
  const share = whole && known(whole.size_mib) && known(trial.size_mib) && trial !== whole ? trial.size_mib / whole.size_mib : null;
  const figure = share === null ? `${significant(trial.size_mib, 3)} MiB` : share < 1 ? `${percent(1 - share)} smaller` : `${percent(share - 1)} larger`;
  return tile("File", figure, share === null ? null : `${significant(trial.size_mib)} MiB instead of ${significant(whole.size_mib)}`);
}

function command(title, text, note) {
  return el("div", { class: "command" }, el("div", { class: "head" }, el("b", {}, title), copyButton(text, title)), el("pre", { tabindex: "0" }, text), note ? el("p", { class: "quiet" }, note) : null);
}

function commands(trial) {
  const texts = trial.commands;
  if (!texts) return el("p", { class: "notice" }, "This trial has no exported file: only the points of the front have one.");
  const answers = data.points[trial.number]?.answers ?? [];
  const note = answers.length ? `It prints its answers to ${answers.length} example inputs: ${answers.join(", ")}.` : "";
  const more = [["Load it in Python", texts.load], ["Train it longer", texts.refine], ["Write it for another runtime", texts.export], ["Make it again: the command of this search", texts.reproduce]];
  return el("div", {},
    command("Take it with you", texts.pick),
    command("Run it", texts.run, note),
    opened("more-commands", "Load, refine, export, reproduce", () => more.filter(([, text]) => text).map(([title, text]) => command(title, text))));
}

/** The metric on a split, and under it the 95 % Wilson interval where there is one. */
function withInterval(trial, split) {
  const interval = trial.file.intervals[split];
  return el("div", {}, metricText(trial.file.metrics[split]?.[info.metric]), interval ? el("small", {}, intervalText(interval)) : null);
}

/** Rows of the comparison, first those that decide: each a title, or [label, trial -> content of its cell]. */
function rowsOf(shown) {
  const splits = new Set(shown.flatMap((trial) => Object.keys(trial.file?.metrics ?? {})));
  const others = new Set(shown.flatMap((trial) => Object.values(trial.file?.metrics ?? {}).flatMap(Object.keys)));
  others.delete(info.metric);
  const ordered = ["test", "selection", ...splits].filter((split, i, all) => splits.has(split) && all.indexOf(split) === i);
  const samples = (split) => shown.map((trial) => trial.file?.n_samples[split]).find((n) => n > 0);
  const splitLabel = (split) => `${info.metric}, ${split} split` + (samples(split) ? ` of ${samples(split).toLocaleString("en")}` : "");
  const filed = (text) => (trial) => (trial.file ? text(trial) : DASH);
  const timed = (latency) => (latency ? el("div", {}, milliseconds(latency.ms), el("small", {}, `${times(latency.ratio)} ± ${significant(latency.spread, 2)}`)) : DASH);
  return {
    main: [
      ["what was done", (trial) => trial.what],
      ...ordered.map((split) => [splitLabel(split), filed((trial) => withInterval(trial, split))]),
      ["gap, selection → test", filed(gapText)],
      ["latency", filed((trial) => timed(trial.file.latency))],
      ["size of the file", (trial) => `${significant(trial.size_mib)} MiB`],
      ["memory to run it", filed((trial) => (known(trial.file.memory_mib) ? `${significant(trial.file.memory_mib)} MiB` : DASH))],
      "Seen by the search",
      [`${info.metric}, selection split`, (trial) => metricText(trial.metrics[info.metric])],
      ["latency", (trial) => timed(trial.latency)],
      ["latency foreseen", (trial) => (trial.predicted ? `${milliseconds(trial.predicted[0])} (${milliseconds(trial.predicted[1])} to ${milliseconds(trial.predicted[2])})` : DASH)],
    ],
    more: [
      ...ordered.flatMap((split) => [...others].map((name) => [`${name}, ${split} split`, filed((trial) => significant(trial.file.metrics[split]?.[name], 4))])),
      ["same answer as in PyTorch", filed((trial) => percent(trial.file.agreement, 2))],
      ["largest difference from PyTorch", filed((trial) => (known(trial.file.max_abs_diff) ? trial.file.max_abs_diff.toExponential(1) : DASH))],
      ["with zeros left out", filed((trial) => (known(trial.file.sparse_size_mib) ? `${significant(trial.file.sparse_size_mib)} MiB` : DASH))],
      ["in a zip archive", filed((trial) => (known(trial.file.zip_size_mib) ? `${significant(trial.file.zip_size_mib)} MiB` : DASH))],
      ["after fine-tune steps", (trial) => trial.rungs.map(([steps, value]) => `${steps}: ${metricText(value, 1)}`).join(", ") || DASH],
      ["parameters", (trial) => counted(trial.n_params)],
      ["multiply-accumulates", (trial) => counted(trial.n_macs)],
      ["proposed by", (trial) => trial.origin],
      ["seconds on a worker", (trial) => Object.entries(trial.seconds).map(([phase, seconds]) => `${phase} ${significant(seconds)}`).join(", ") || DASH],
    ],
  };
}

function gapText(trial) {
  const gap = trial.file.metrics.test?.[info.metric] - trial.file.metrics.selection?.[info.metric];
  return known(gap) ? differenceText(gap) : DASH;
}

function numbersTable(rows, shown, titles) {
  const lines = rows.map((row) =>
    typeof row === "string"
      ? el("tr", { class: "group" }, el("th", { colspan: shown.length + 1, scope: "rowgroup" }, row))
      : el("tr", {}, el("th", { scope: "row" }, row[0]), ...shown.map((trial) => el("td", {}, row[1](trial)))));
  return el("div", { class: "scroll" }, table(["", ...titles], lines));
}

/** A select that chooses the point to compare with. */
function compareSelect(trial, beside, onCompare) {
  const select = el("select", {}, el("option", { value: "" }, "nothing"));
  for (const other of choosableTrials().filter((other) => other !== trial)) {
    select.append(el("option", { value: other.number, selected: other === beside }, `${other === whole ? "uncompressed" : `trial ${other.number}`}, ${metricText(bestKnown(other)[0])}, ${milliseconds(latencyOf(other)?.ms)}`));
  }
  select.addEventListener("change", () => onCompare(select.value === "" ? null : Number(select.value)));
  return el("label", {}, "Compare with ", select);
}

/** Fills the panel next to the plot. */
function showDetails(trial) {
  const panel = byId("details");
  if (!trial) {
    panel.replaceChildren(el("h2", { id: "details-title" }, "No point to show"), el("p", {}, "No trial has finished with a latency and a score."));
    return;
  }
  panel.replaceChildren(
    el("h2", { id: "details-title" }, `Trial ${trial.number}, ${kindText(trial)}`),
    trial.state === "failed" ? el("p", { class: "notice" }, trial.why) : el("div", { class: "tiles" }, speedTile(trial), accuracyTile(trial), sizeTile(trial)),
    el("p", { class: "done" }, capital(trial.what) + "."),
    trial.why && trial.state !== "failed" ? el("p", { class: "notice" }, trial.why) : "",
    commands(trial));
}

/** Fills "Side by side": the chosen point, the one to compare with (or null), and the uncompressed model. */
function showSideBySide(trial, beside, onCompare) {
  const place = byId("side-by-side");
  const shown = [trial, beside, whole].filter((item, i, all) => item && all.indexOf(item) === i);
  if (!trial) return place.replaceChildren(el("p", { class: "quiet" }, "There is nothing to compare."));
  const titles = shown.map((item) => (item === whole ? "uncompressed" : `trial ${item.number}`));
  const rows = rowsOf(shown);
  return place.replaceChildren(compareSelect(trial, beside, onCompare), el("div", { class: "tables" }, numbersTable(rows.main, shown, titles), numbersTable(rows.more, shown, titles)));
}
