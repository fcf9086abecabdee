/* The scatter of all trials, the front as a line, and the budget. */

const SHAPES = {
  front: "M0,-8L8,0L0,8L-8,0Z",
  baseline: "M-6,-6H6V6H-6Z",
  uniform: "M0,-6L6,5H-6Z",
  trial: "M-3.5,0A3.5,3.5 0 1 0 3.5,0A3.5,3.5 0 1 0 -3.5,0Z",
  stopped: "M-4,-1H4M-4,2H4",
  infeasible: "M-3.5,-3.5L3.5,3.5M-3.5,3.5L3.5,-3.5",
};
const KIND_TEXT = {
  front: "on the front",
  baseline: "uncompressed model",
  uniform: "same choice everywhere",
  trial: "other trial",
  stopped: "stopped early",
  infeasible: "outside the limits of the search",
  failed: "failed",
};
/** A uniform trial on the front is both. */
const kindText = (trial) => KIND_TEXT[trial.kind] + (trial.kind === "front" && trial.origin === "uniform" ? `, ${KIND_TEXT.uniform}` : "");
const DRAWN_LAST = ["infeasible", "stopped", "trial", "uniform", "baseline", "front"];

class Plot {
  /** `frame`: element to draw in; `onChoose(number)`: called when a reader picks a point. */
  constructor(frame, onChoose) {
    this.frame = frame;
    this.onChoose = onChoose;
    this.tip = el("div", { class: "tip", role: "status", hidden: true });
    this.picture = svg("svg", { role: "group", "aria-label": "All trials and the front" });
    frame.append(this.picture, this.tip);
    this.picture.addEventListener("pointermove", (event) => this.hover(this.nearest(event, 16)));
    this.picture.addEventListener("pointerleave", () => this.hover(null));
    this.picture.addEventListener("click", (event) => this.choose(this.nearest(event, 28)));
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.picture.addEventListener("focusin", (event) => this.hover(this.pointOf(event.target)));
    this.picture.addEventListener("focusout", () => this.hover(null));
  }

  /** Draws everything; `view` has trials, front (numbers), knee, x and y axes, zoom, runBudget. */
  draw(view) {
    this.view = view;
    const width = Math.max(280, this.frame.clientWidth);
    const height = Math.max(280, Math.min(440, width * 0.6));
    this.size = { left: 52, right: width - 14, top: 24, bottom: height - 42 };
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.setAttribute("height", height);
    const placed = view.trials.map((trial) => ({ trial, x: view.x.value(trial), y: view.y.value(trial) }));
    const all = placed.filter((point) => known(point.x) && known(point.y));
    const [xs, ys] = this.ranges(all);
    this.x = scale(...xs, this.size.left, this.size.right);
    this.y = scale(...ys, this.size.bottom, this.size.top, 60);
    const inside = (point) => point.x >= this.x.low && point.x <= this.x.high && point.y >= this.y.low && point.y <= this.y.high;
    this.points = all.filter(inside).sort((a, b) => DRAWN_LAST.indexOf(a.trial.kind) - DRAWN_LAST.indexOf(b.trial.kind));
    for (const point of this.points) [point.left, point.top] = [this.x.toPixel(point.x), this.y.toPixel(point.y)];
    this.byNumber = new Map(this.points.map((point) => [point.trial.number, point]));
    this.nOutside = all.length - this.points.length;
    this.budgetLine = svg("g", { "aria-hidden": "true" });
    this.marks = svg("g", { "aria-hidden": "true" });
    const titles = width < 480 && view.y.short ? [view.x.short, view.y.short] : [view.x.title, view.y.title];
    this.picture.replaceChildren(
      axes(this.x, this.y, this.size, ...titles, view.x.tick, view.y.tick),
      this.budgetLine, this.runBudget(), this.frontLine(), this.whiskers(), this.marks, ...this.points.map((point) => this.mark(point)), this.labels());
    if (!all.length) this.picture.replaceChildren(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No trial has both of these numbers."));
  }

  /** Ranges of both axes: of all points, or of what matters for choosing, with room around it. */
  ranges(all) {
    const main = all.filter((point) => point.trial.kind === "front" || point.trial.kind === "baseline");
    const zoomed = this.view.zoom && main.length > 0;
    const xs = (zoomed ? main : all).map((point) => point.x);
    if (known(this.view.runBudget)) xs.push(this.view.runBudget);
    const [left, right] = spanned(xs, 0.08);
    const ys = (zoomed ? main : all).map((point) => point.y);
    if (zoomed) {
      // points a little worse than the front show what the search passed over
      const [low, high] = [Math.min(...ys), Math.max(...ys)];
      const margin = 1.2 * Math.max(high - low, 0.01 * Math.abs(high));
      if (this.view.minimized) ys.push(Math.min(high + margin, most(all.map((point) => point.y))));
      else ys.push(Math.max(low - margin, least(all.map((point) => point.y))));
    }
    return [[xs.every((x) => x >= 0) ? Math.max(0, left) : left, right], spanned(ys, 0.1)];
  }

  mark(point) {
    const { trial } = point;
    point.node = svg("path", {
      d: SHAPES[trial.kind], class: `point ${trial.kind} from-${trial.origin.replace(/\W/g, "-")}`, transform: `translate(${point.left},${point.top})`, tabindex: "-1", role: "button", "aria-pressed": "false",
      "aria-label": this.describe(point).join(", "), "data-trial": trial.number,
    });
    return point.node;
  }

  describe({ trial, x, y }) {
    const { view } = this;
    return [`Trial ${trial.number}, ${kindText(trial)}`, `${view.y.name} ${view.y.text(y)}`, `${view.x.name} ${view.x.text(x)}`, trial.what];
  }

  frontLine() {
    const front = this.points.filter((point) => this.view.front.has(point.trial.number)).sort((a, b) => a.x - b.x);
    return svg("path", { class: "front-line", d: front.map((point, i) => `${i ? "L" : "M"}${point.left},${point.top}`).join("") });
  }

  /** Labels at the two points that all others are compared with. */
  labels() {
    const group = svg("g", { "aria-hidden": "true" });
    const whole = this.points.find((point) => point.trial.kind === "baseline");
    const knee = this.byNumber.get(this.view.knee);
    for (const [point, text] of [[whole, "uncompressed"], [knee, "good trade"]]) {
      if (!point || (point === knee && whole && Math.hypot(point.left - whole.left, point.top - whole.top) < 60)) continue;
      // left of the knee and above it there are no points: they would be better
      const right = point === knee ? point.left > this.size.left + 90 : point.left > this.size.right - 90;
      group.append(svg("text", { class: "label", x: point.left + (right ? -13 : 13), y: point.top - 10, "text-anchor": right ? "end" : "start" }, text));
    }
    return group;
  }

  /** The interval of each exported point, where the picture shows the split that it belongs to. */
  whiskers() {
    const group = svg("g", { "aria-hidden": "true" });
    for (const point of this.points) {
      const interval = this.view.y.interval(point.trial);
      if (!interval) continue;
      const [low, high] = interval.map((value) => Math.min(this.size.bottom, Math.max(this.size.top, this.y.toPixel(value))));
      group.append(svg("line", { class: "whisker", x1: point.left, x2: point.left, y1: low, y2: high }));
    }
    return group;
  }

  runBudget() {
    const group = svg("g", { "aria-hidden": "true" });
    if (!known(this.view.runBudget)) return group;
    const at = this.x.toPixel(this.view.runBudget);
    const near = at > this.size.right - 110;
    group.append(svg("line", { class: "run-budget", x1: at, x2: at, y1: this.size.top, y2: this.size.bottom }));
    group.append(svg("text", { class: "budget-text", x: at + (near ? -5 : 5), y: this.size.bottom - 8, "text-anchor": near ? "end" : "start" }, "the search’s budget"));
    return group;
  }

  /** Moves the slider's line, and rings the chosen point (`selected`) and the one it is compared with. */
  update(budget, selected, beside) {
    const line = this.budgetLine;
    line.replaceChildren();
    if (known(budget) && budget >= this.x.low && budget <= this.x.high) {
      const at = this.x.toPixel(budget);
      line.append(svg("rect", { class: "beyond", x: at, y: this.size.top, width: this.size.right - at, height: this.size.bottom - this.size.top }));
      line.append(svg("line", { class: "slider-budget", x1: at, x2: at, y1: this.size.top, y2: this.size.bottom + 8 }));
    }
    this.marks.replaceChildren();
    for (const [number, kind] of [[beside, "halo"], [selected, "ring"]]) {
      const point = this.byNumber.get(number);
      if (point) this.marks.append(svg("circle", { class: kind, cx: point.left, cy: point.top, r: 13 }));
    }
    const chosen = this.byNumber.get(selected);
    this.pressed?.node.setAttribute("aria-pressed", "false");
    chosen?.node.setAttribute("aria-pressed", "true");
    this.pressed = chosen;
    this.stopAt(chosen ?? this.points.at(-1));
  }

  /** Makes one point the plot's stop for the Tab key; the arrow keys move from it. */
  stopAt(point) {
    this.stop?.node.setAttribute("tabindex", "-1");
    point?.node.setAttribute("tabindex", "0");
    this.stop = point;
  }

  pointOf(node) {
    return this.points.find((point) => point.node === node) ?? null;
  }

  /** The point nearest to a pointer within `reach` pixels; the front wins over what lies behind it. */
  nearest(event, reach) {
    const box = this.picture.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let shortest = reach;
    for (const point of this.points) {
      const lead = point.trial.kind === "front" || point.trial.kind === "baseline" ? 6 : 0;
      const distance = Math.hypot(point.left - left, point.top - top) - lead;
      if (distance < shortest) [best, shortest] = [point, distance];
    }
    return best;
  }

  hover(point) {
    this.tip.hidden = point === null;
    if (point === null) return;
    this.tip.replaceChildren(...this.describe(point).map((line) => el("div", {}, line)));
    const left = Math.min(point.left + 14, this.frame.clientWidth - this.tip.offsetWidth);
    const below = point.top + 16 + this.tip.offsetHeight < this.size.bottom;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${below ? point.top + 14 : Math.max(0, point.top - this.tip.offsetHeight - 14)}px`;
  }

  choose(point) {
    if (point !== null) this.onChoose(point.trial.number);
  }

  /** Left and right walk along the front, up and down through all points by x; Enter and Space choose. */
  key(event) {
    const here = this.pointOf(event.target);
    if (here === null) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return this.choose(here);
    }
    const steps = { ArrowLeft: [-1, true], ArrowRight: [1, true], ArrowDown: [-1, false], ArrowUp: [1, false], Home: [-Infinity, true], End: [Infinity, true] };
    const [step, frontOnly] = steps[event.key] ?? [0, false];
    if (!step) return;
    event.preventDefault();
    const walk = this.points.filter((point) => point === here || !frontOnly || point.trial.kind === "front" || point.trial.kind === "baseline").sort((a, b) => a.x - b.x || a.y - b.y);
    const next = walk[Math.min(walk.length - 1, Math.max(0, walk.indexOf(here) + step))];
    this.stopAt(next);
    next.node.focus();
  }
}
