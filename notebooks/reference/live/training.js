/** Training, scrubbed: λ and the correlation of the two maps' scores, by layer, at 14 moments of five runs. */

import { choice, html, responsive, say, slider, svg, text } from "./page.js";

const NAMES = { hf: "v1", v2: "v2", none: "plain" };
const PANELS = [["lambda", "λ", [-0.5, 0, 0.5, 1, 1.5]], ["correlation", "ρ, correlation of the scores of A₁ and A₂", [-1, -0.5, 0, 0.5, 1]]];
const OPENED = 100; // the step at which the figure opens

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

export async function trainingFigure(figure) {
  const { moments, kinds } = await (await fetch("training.json")).json();
  const state = { kind: "hf", moment: moments.indexOf(OPENED) };
  const stage = figure.querySelector(".stage"), status = html("p", { class: "status", role: "status" });
  const without = html("span", {}, " (a plain head draws one map; here two heads are paired as in v1)");
  const boxes = PANELS.map(() => html("div", { class: "panel-box" }));
  const step = slider({ id: "training-moment", label: "step of training", min: 0, max: moments.length - 1, step: 1, value: state.moment,
    show: (i) => String(moments[i]), change: (moment) => set({ moment }) });
  stage.replaceChildren(
    html("div", { class: "controls" },
      choice({ name: "training-kind", legend: "kind of attention", value: state.kind, options: Object.entries(NAMES), change: (kind) => set({ kind }) }), step.node),
    html("div", { class: "two" }, PANELS.map(([, name], i) => html("div", {}, html("p", {}, html("b", {}, name), i ? without : null), boxes[i]))), status);

  /** By seed, the numbers of the layers at this moment; empty where nothing is subtracted. */
  const now = (measure) => kinds[state.kind][measure].map((seed) => seed[state.moment]);
  const means = (measure) => now(measure)[0].map((_, layer) => mean(now(measure).map((seed) => seed[layer])));

  const words = (measure) => means(measure).map((value, layer) => `layer ${layer}: ${text(value)}`).join(", ") || "nothing is subtracted";

  const redraw = PANELS.map(([measure, name, ticks], i) => responsive(boxes[i], (width) => {
    const height = 190, left = 36, right = 10, top = 10, bottom = 28, layers = 4, [low, high] = [ticks[0], ticks.at(-1)];
    const x = (layer) => left + ((layer + 0.5) / layers) * (width - left - right), y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
    boxes[i].replaceChildren(svg("svg", { width, height, role: "img", "aria-label": `${name}, mean over five seeds: ${words(measure)}` },
      ticks.map((value) => [svg("line", { class: value ? "grid" : "grid zero", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value, 1))]),
      Array.from({ length: layers }, (_, layer) => svg("text", { x: x(layer), y: height - 8, "text-anchor": "middle" }, `layer ${layer}`)),
      now(measure).flatMap((seed, n) => seed.map((value, layer) => svg("circle", { cx: x(layer) + (n - 2) * 5, cy: y(value), r: 4, class: value < 0 ? "minus" : "plus" }))),
      now(measure)[0].length ? null : svg("text", { x: left + 12, y: y(low) - 10 }, `no ${name}: nothing is subtracted`),
      means(measure).map((value, layer) => svg("line", { class: "interval", x1: x(layer) - 16, x2: x(layer) + 16, y1: y(value), y2: y(value) }))));
  }));

  function set(change) {
    Object.assign(state, change);
    redraw.forEach((draw) => draw());
    without.hidden = state.kind !== "none";
    const lambdas = means("lambda").map((x) => text(x)).join(", ");
    say(status, `Step ${moments[state.moment]}, means over five seeds. ${lambdas ? `λ by layer: ${lambdas}` : "Plain attention has no λ"}. ` +
      `ρ by layer: ${means("correlation").map((x) => text(x)).join(", ")}.`);
  }
  set({});
  figure.dataset.ready = "";
  return { state };
}
