/* One point in words and figures: what it is, how to leave with it, and what was done to each layer. */

const metricText = (value, digits = 2) => (info.is_share ? percent(value, digits) : significant(value, 4));

/** A figure of any metric; only the run's own metric is known to be a share or not. */
const figureText = (name, value) => (name === info.metric ? metricText(value) : significant(value, 4));

const latencyOf = (trial) => (trial.file ? trial.file.latency : trial.latency);

/** The metric on a split, and under it the 95 % Wilson interval where there is one. */
function withInterval(trial, split) {
  const interval = trial.file.intervals[split];
  const bounds = interval ? el("small", {}, `95% interval ${interval.map((end) => (100 * end).toFixed(1)).join("–")}%`) : null;
  return el("div", {}, metricText(trial.file.metrics[split]?.[info.metric]), bounds);
}

function speedText(ratio) {
  if (!known(ratio)) return DASH;
  return ratio <= 1 ? `${significant(1 / ratio)} times as fast` : `${significant(ratio)} times as slow`;
}

/** The plain sentence that stands above the figures. */
function sentence(trial) {
  if (trial.state === "failed") return `This trial failed: ${trial.why}`;
  const parts = [trial.kind === "baseline" ? "The model as it was" : `${speedText(trial.ratio)} as the uncompressed model`];
  const whole = trials.find((other) => other.number === data.baseline);
  if (trial !== whole && whole && known(whole.size_mib) && known(trial.size_mib)) {
    const share = trial.size_mib / whole.size_mib;
    parts.push(share <= 1 ? `${percent(1 - share)} smaller` : `${percent(share - 1)} larger`);
  }
  const test = trial.file?.metrics.test?.[info.metric];
  if (known(test)) parts.push(`${metricText(test)} ${info.metric} on samples that the search never saw`);
  else parts.push(`${metricText(trial.score)} ${info.metric} on the selection split`);
  const text = parts.join(", ");
  return text[0].toUpperCase() + text.slice(1) + ".";
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
  const timed = (latency) => (latency ? `${significant(latency.ms)} ms, ${times(latency.ratio)} ± ${significant(latency.spread, 2)}` : DASH);
  return {
    main: [
      ["what was done", (trial) => trial.what],
      ...ordered.map((split) => [splitLabel(split), filed((trial) => withInterval(trial, split))]),
      ["gap, selection → test", filed(gapText)],
      ["latency", filed((trial) => timed(trial.file.latency))],
      ["size of the file", filed((trial) => `${significant(trial.size_mib)} MiB`)],
      "Seen by the search",
      [`${info.metric}, selection split`, (trial) => metricText(trial.metrics[info.metric])],
      ["latency", (trial) => timed(trial.latency)],
    ],
    more: [
      ...ordered.flatMap((split) => [...others].map((name) => [`${name}, ${split} split`, filed((trial) => significant(trial.file.metrics[split]?.[name], 4))])),
      ["same answer as in PyTorch", filed((trial) => percent(trial.file.agreement, 2))],
      ["largest difference from PyTorch", filed((trial) => (known(trial.file.max_abs_diff) ? trial.file.max_abs_diff.toExponential(1) : DASH))],
      ["after fine-tune steps", (trial) => trial.rungs.map(([steps, value]) => `${steps}: ${metricText(value, 1)}`).join(", ") || DASH],
      ["parameters", (trial) => counted(trial.n_params)],
      ["multiply-accumulates", (trial) => counted(trial.n_macs)],
      ["seconds on a worker", (trial) => Object.entries(trial.seconds).map(([phase, seconds]) => `${phase} ${significant(seconds)}`).join(", ") || DASH],
    ],
  };
}

function gapText(trial) {
  const gap = trial.file.metrics.test?.[info.metric] - trial.file.metrics.selection?.[info.metric];
  if (!known(gap)) return DASH;
  const sign = gap > 0 ? "+" : gap < 0 ? "−" : "";
  return sign + (info.is_share ? `${(100 * Math.abs(gap)).toFixed(2)} points` : significant(Math.abs(gap), 3));
}

function numbersTable(rows, shown, titles) {
  const lines = rows.map((row) =>
    typeof row === "string"
      ? el("tr", { class: "group" }, el("th", { colspan: shown.length + 1, scope: "rowgroup" }, row))
      : el("tr", {}, el("th", { scope: "row" }, row[0]), ...shown.map((trial) => el("td", {}, row[1](trial)))));
  return el("div", { class: "scroll" }, table(["", ...titles], lines));
}

function command(title, text) {
  return el("div", {}, el("h3", {}, title), el("div", { class: "command" }, el("pre", {}, text), copyButton(text)));
}

function commands(trial) {
  if (!trial.commands) return el("p", { class: "quiet" }, "This trial has no exported file: only the points of the front have one.");
  return el("div", {},
    command("Load it in Python", trial.commands.load),
    command("Take it with you", trial.commands.pick),
    el("p", { class: "quiet" }, "Its files lie in ", el("code", {}, trial.commands.folder)));
}

/** Fills the panel beside the plot. `beside` is a trial to compare with, or null. */
function showDetails(trial, beside, onKeep) {
  const panel = byId("details");
  const whole = trials.find((other) => other.number === data.baseline);
  if (!trial) {
    panel.replaceChildren(el("h2", { id: "details-title" }, "No point to show"), el("p", {}, "No trial has finished with a latency and a score."));
    return;
  }
  const shown = [trial, beside, whole].filter((item, i, all) => item && all.indexOf(item) === i);
  const titles = shown.map((item) => (item === whole ? "uncompressed" : `trial ${item.number}`));
  const keep = el("button", { type: "button", onclick: onKeep, "aria-pressed": String(beside === trial) }, beside === trial ? "Stop comparing" : "Keep to compare");
  const rows = rowsOf(shown);
  const more = el("details", { open: panel.querySelector("details")?.open ?? false }, el("summary", {}, "More figures"), numbersTable(rows.more, shown, titles));
  panel.replaceChildren(
    el("h2", { id: "details-title" }, `Trial ${trial.number}, ${kindText(trial)}`, trial === whole ? null : keep),
    el("p", {}, sentence(trial)), trial.why && trial.state !== "failed" ? el("p", { class: "notice" }, trial.why) : "",
    commands(trial), el("h3", {}, "Measured from the exported file"), numbersTable(rows.main, shown, titles), more);
}

const FIRST_LAYERS = 300;
const choiceOf = (trial, kind, name) => {
  const at = choiceIndex[kind].get(name);
  return at === undefined ? undefined : trial.choices[kind][at];
};

/** One line per layer in network order, then choices whose name is no layer's path. */
function layerLines(trial) {
  const paths = new Set(data.layers.map((layer) => layer.path));
  const lines = data.layers.map((layer) => ({
    path: layer.path,
    detail: [layer.path, layer.kind, known(layer.n_macs) ? counted(layer.n_macs) + " multiply-accumulates" : "", known(layer.n_params) ? counted(layer.n_params) + " parameters" : ""].filter(Boolean).join(", "),
    prune: choiceOf(trial, "prune", layer.group ?? layer.path),
    rank: choiceOf(trial, "rank", layer.path),
    bits: choiceOf(trial, "bits", layer.path) ?? 32,
    gone: layer.branch !== undefined && choiceOf(trial, "drop", layer.branch) === 1,
  }));
  const groups = new Set(data.layers.map((layer) => layer.group).filter(Boolean));
  for (const name of data.names.prune.filter((name) => !paths.has(name) && !groups.has(name))) {
    lines.push({ path: name, detail: `channel group ${name}`, prune: choiceOf(trial, "prune", name), bits: null });
  }
  return lines;
}

function bar(share, kind, text) {
  const fill = el("i");
  fill.style.width = `${100 * share}%`;
  return el("div", { class: `bar ${kind}` }, fill, el("span", {}, text));
}

/** A share of the largest rank as a bar; a scheme or an energy, like `spatial:0.5`, in its own words. */
function rankCell(rank) {
  if (typeof rank === "string") return el("div", {}, rank);
  return known(rank) ? bar(rank, "rank", percent(rank)) : el("div");
}

function layerCells(line) {
  const name = el("bdi", { class: "path", title: line.detail }, line.path);
  if (line.gone) return [name, el("div", { class: "gone" }, "removed with its block")];
  return [
    name,
    known(line.prune) ? bar(1 - line.prune, "width", percent(1 - line.prune)) : el("div"),
    rankCell(line.rank),
    line.bits === null ? el("div") : el("div", { class: line.bits < 32 ? "bits low" : "bits" }, `${line.bits}-bit`),
  ];
}

/** The picture of one trial; `whole` also shows the layers after the first 300. */
function layerPicture(trial, whole = false) {
  const lines = layerLines(trial);
  const shown = whole ? lines : lines.slice(0, FIRST_LAYERS);
  const dropped = data.names.drop.filter((name, i) => trial.choices.drop[i]);
  const heads = ["layer", "channels kept", "rank kept", "bits"].map((text) => el("div", { class: "head" }, text));
  const picture = el("div", {},
    el("p", {}, `Trial ${trial.number}: ${trial.what}.`),
    dropped.length ? el("p", {}, "Blocks removed, so that only their shortcut remains: ", ...dropped.flatMap((name, i) => [i ? ", " : "", named(name)])) : null,
    el("div", { class: "layers" }, ...heads, ...shown.flatMap(layerCells)));
  if (shown.length < lines.length) picture.append(el("button", { type: "button", onclick: () => picture.replaceWith(layerPicture(trial, true)) }, `Show all ${lines.length} layers`));
  return picture;
}

/** Fills the section "Layer by layer" with the chosen trial and the one kept beside it. */
function showLayers(trial, beside) {
  const shown = [trial, beside].filter((item, i, all) => item && all.indexOf(item) === i);
  if (!shown.length || !data.layers.length) return byId("layers").replaceChildren(el("p", { class: "quiet" }, "There is nothing to show."));
  const coupled = data.layers.some((layer) => layer.group)
    ? "Layers that must keep the same channels lose them together and are drawn alike."
    : "Layers that must keep the same channels lose them together; their share is drawn at the first of them.";
  return byId("layers").replaceChildren(
    el("p", { class: "quiet" }, `In network order. An empty cell is a choice that no trial made there. ${coupled}`),
    el("div", { class: "beside" }, ...shown.map((item) => layerPicture(item))));
}
