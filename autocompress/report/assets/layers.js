/* The chosen point layer by layer: what was done to each, where the time of a run goes, and what holds it back. */

const FIRST_LAYERS = 300;
const choiceOf = (trial, kind, name) => {
  const at = choiceIndex[kind].get(name);
  return at === undefined ? undefined : trial.choices[kind][at];
};
const pointOf = (trial) => (trial ? data.points[trial.number] : undefined);
const timesOf = (trial) => pointOf(trial)?.times ?? null;

/** Outputs of a layer: the first size of its only weight, or of the last factor that it was split into. */
const widthOf = (trial, i) => pointOf(trial)?.shapes[i]?.at(-1)?.[0];

/** One line per layer in network order, then choices whose name is no layer's path. */
function layerLines(trial) {
  const paths = new Set(data.layers.map((layer) => layer.path));
  const lines = data.layers.map((layer, i) => {
    const prune = choiceOf(trial, "prune", layer.group ?? layer.path);
    const [kept, of] = [widthOf(trial, i), widthOf(whole, i)];
    const gone = layer.branch && choiceOf(trial, "drop", layer.branch) === 1;
    return {
      path: layer.path, gone,
      detail: [layer.path, layer.kind, known(layer.n_macs) ? counted(layer.n_macs) + " multiply-accumulates" : "", known(layer.n_params) ? counted(layer.n_params) + " parameters" : ""].filter(Boolean).join(", "),
      width: known(kept) && known(of) && !gone ? `${kept} of ${of}` : undefined, share: known(kept) && known(of) ? kept / of : known(prune) ? 1 - prune : undefined,
      rank: choiceOf(trial, "rank", layer.path), factors: pointOf(trial)?.shapes[i]?.slice(0, -1).map((shape) => shape[0]) ?? [],
      sparsity: choiceOf(trial, "sparsity", layer.path),
      bits: choiceOf(trial, "bits", layer.path) ?? 32,
      before: timesOf(whole)?.layers[i], after: timesOf(trial)?.layers[i],
    };
  });
  const groups = new Set(data.layers.map((layer) => layer.group).filter(Boolean));
  for (const name of data.names.prune.filter((name) => !paths.has(name) && !groups.has(name))) {
    const prune = choiceOf(trial, "prune", name);
    lines.push({ path: name, detail: `channel group ${name}`, share: known(prune) ? 1 - prune : undefined, factors: [], bits: null });
  }
  return lines;
}

function bar(share, kind, text) {
  const fill = el("i");
  fill.style.width = `${100 * Math.min(1, share)}%`;
  return el("div", { class: `bar ${kind}` }, fill, el("span", {}, text));
}

/** Two thin bars, before and after, on the scale of the slowest layer. */
function timeBars(before, after, longest) {
  if (!known(before) && !known(after)) return el("div");
  const pair = el("div", { class: "pair-of-bars" });
  for (const [value, kind] of [[before, "before"], [after, "after"]]) {
    const fill = el("i", { class: kind });
    fill.style.width = `${(100 * (value ?? 0)) / longest}%`;
    pair.append(fill);
  }
  return el("div", { class: "time" }, pair, el("span", {}, known(before) ? `${milliseconds(before)} → ${known(after) ? milliseconds(after) : "gone"}` : milliseconds(after)));
}

/** The rank that a layer got, or the share, scheme or energy that was asked for, like `spatial:0.5`. */
function rankCell(line) {
  const text = line.factors.length ? `rank ${line.factors.join(", ")}` : null;
  if (known(line.rank)) return bar(line.rank, "rank", text ?? percent(line.rank));
  return el("div", {}, line.rank ? el("small", {}, [line.rank, text].filter(Boolean).join(", ")) : "");
}

function layerCells(line, longest, timed) {
  const name = el("bdi", { class: "path", title: line.detail }, line.path);
  const time = timed ? [timeBars(line.before, line.gone ? null : line.after, longest)] : [];
  if (line.gone) return [name, el("div", { class: "gone" }, "removed with its block"), ...time];
  const bits = line.bits === null ? el("div") : el("div", { class: line.bits === 32 ? "bits" : "bits low" }, `${line.bits}-bit`);
  if (line.sparsity) bits.append(el("small", {}, ` ${known(line.sparsity) ? percent(line.sparsity) : line.sparsity} zero`));
  return [name, known(line.share) ? bar(line.share, "width", line.width ?? percent(line.share)) : el("div"), rankCell(line), bits, ...time];
}

/** Time that belongs to no layer, as further lines of the picture. */
function restOfTime(trial, longest) {
  const [before, after] = [timesOf(whole), timesOf(trial)];
  const kinds = [["conversions", "between 8-bit and float"], ["layout", "between memory layouts"], ["other", "additions, activations, pooling"]];
  return kinds.filter(([key]) => before?.[key][1] || after?.[key][1]).flatMap(([key, text]) => [
    el("div", { class: "other" }, text), el("div", { class: "span quiet" }, `${before?.[key][1] ?? 0} → ${after[key][1]} operations`), timeBars(before?.[key][0], after[key][0], longest)]);
}

/** The picture of one trial; `all` also shows the layers after the first 300. */
function layerPicture(trial, all = false) {
  const lines = layerLines(trial);
  const shown = all ? lines : lines.slice(0, FIRST_LAYERS);
  const dropped = data.names.drop.filter((name, i) => trial.choices.drop[i]);
  const timed = timesOf(trial) !== null;
  const longest = most(lines.flatMap((line) => [line.before, line.after]).filter(known));
  const heads = ["layer", "channels kept", "rank kept", "bits", ...(timed ? ["time of a run, before → after"] : [])].map((text) => el("div", { class: "head" }, text));
  const grid = el("div", { class: timed ? "layers timed" : "layers" }, ...heads, ...shown.flatMap((line) => layerCells(line, longest, timed)), ...(timed ? restOfTime(trial, longest) : []));
  const picture = el("div", {},
    el("p", {}, el("b", {}, trial === whole ? "Uncompressed" : `Trial ${trial.number}`), `: ${trial.what}.`),
    dropped.length ? el("p", {}, "Blocks removed, so that only their shortcut remains: ", ...dropped.flatMap((name, i) => [i ? ", " : "", named(name)])) : null,
    el("div", { class: "scroll" }, grid));
  if (shown.length < lines.length) picture.append(el("button", { type: "button", onclick: () => picture.replaceWith(layerPicture(trial, true)) }, `Show all ${lines.length} layers`));
  return picture;
}

/** Fills the section "Layer by layer" with the chosen trial and the one it is compared with. */
function showLayers(trial, beside) {
  const shown = [trial, beside].filter((item, i, all) => item && all.indexOf(item) === i);
  if (!shown.length || !data.layers.length) return byId("layers").replaceChildren(el("p", { class: "quiet" }, "There is nothing to show."));
  const times = timesOf(trial);
  const how = times ? ` Times are from ${info.runtime}’s own profiler (${times.n_runs.toLocaleString("en")} runs), less what profiling costs; they sum to a run.` : trial.file ? ` ${info.runtime} has no profiler here, so there are no times by layer.` : " Times by layer are known for the exported points.";
  return byId("layers").replaceChildren(
    el("p", { class: "quiet" }, `In network order. Layers that must keep the same channels lose them together. An empty cell is a choice that no trial made there.${how}`),
    el("div", { class: "beside" }, ...shown.map((item) => layerPicture(item))));
}

const FINDING_TITLE = { launch: "Too short to be faster", alignment: "Awkward channel counts", split: "Two layers for one", slower: "Slower than before", "no gain": "Bound by memory", borders: "Precision borders", untouched: "Left as they are", rest: "Operations without weights" };

/** Fills "Why is it not faster?" with what the layer times say. */
function showWhy(trial) {
  const place = byId("why");
  const point = pointOf(trial);
  if (!trial || trial === whole || !point?.times || !timesOf(whole)) {
    const reason = !trial ? "No point is chosen." : trial === whole ? "This is the uncompressed model: choose a compressed one." : "Known for points of the front, on runtimes that can be profiled layer by layer.";
    return place.replaceChildren(el("p", { class: "quiet" }, reason));
  }
  const summary = `A run of trial ${trial.number} takes ${milliseconds(point.times.run_ms)}, that of the uncompressed model ${milliseconds(timesOf(whole).run_ms)}.`;
  const findings = point.why.map((finding) => el("li", {},
    el("div", { class: "share" }, percent(finding.share), el("small", {}, "of the time")),
    el("div", {}, el("b", {}, FINDING_TITLE[finding.kind] ?? finding.kind), el("p", {}, finding.text))));
  return place.replaceChildren(el("p", {}, summary + (findings.length ? " What keeps it from being faster:" : " Nothing stands out: every layer got faster about as much as it got smaller.")), el("ul", { class: "findings" }, ...findings));
}
