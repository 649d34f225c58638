/** What chapter 05 measured: five seeds of each kind, with the interval of their difference, by length of the rows. */

import { choice, html, percent, responsive, say, slider, svg, text } from "./page.js";

const T_95 = 2.776; // Student's t for 4 degrees of freedom: five seeds
const MEASURES = {
  accuracy: { name: "values found", title: "Values found", wanted: "more" },
  answer: { name: "attention to the answer", title: "Attention to the answer", wanted: "more" },
  noise: { name: "attention to noise", title: "Attention to noise", wanted: "less" },
};
const LAYERS = { last: "last layer", both: "mean of both layers" };

export function interval(numbers) {
  const mean = numbers.reduce((a, b) => a + b) / numbers.length;
  const variance = numbers.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (numbers.length - 1);
  return [mean, T_95 * Math.sqrt(variance / numbers.length)];
}

export async function resultsFigure(figure) {
  const { lengths, accuracy, answer, noise } = await (await fetch("results.json")).json();
  const state = { measure: "accuracy", layers: "last", length: lengths.indexOf(64) };
  const stage = figure.querySelector(".stage"), box = html("div", { class: "dots" }), status = html("p", { class: "status", role: "status" });
  const rows = slider({ id: "results-length", label: "tokens in a sequence", min: 0, max: lengths.length - 1, step: 1, value: state.length,
    show: (i) => String(lengths[i]), change: (length) => set({ length }) });
  const layers = choice({ name: "results-layers", legend: "attention of the", value: state.layers, options: Object.entries(LAYERS), change: (name) => set({ layers: name }) });
  stage.replaceChildren(html("div", { class: "controls" },
    choice({ name: "results-measure", legend: "measure", value: state.measure, options: Object.entries(MEASURES).map(([key, { name }]) => [key, name]),
      change: (measure) => set({ measure }) }), rows.node, layers), box, status);

  /** By kind, the number of each seed. */
  const now = () => (state.measure === "accuracy" ? accuracy : { answer, noise }[state.measure][state.layers])[state.length];
  const title = () => `${MEASURES[state.measure].title}${state.measure === "accuracy" ? "" : `, ${LAYERS[state.layers]}`}, in sequences of ${lengths[state.length]} tokens`;

  const draw = responsive(box, (width) => {
    const height = 292, left = width < 560 ? 12 : 112, right = 20;
    const x = (value) => left + value * (width - left - right), ticks = [0, 0.25, 0.5, 0.75, 1];
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": `${title()}, five seeds each. ${Object.entries(now()).map(([kind, found]) =>
      `${kind}: mean ${text(100 * interval(found)[0], 1)} %, from ${text(100 * Math.min(...found), 1)} to ${text(100 * Math.max(...found), 1)} %`).join("; ")}.` },
      ticks.map((value) => [svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 8, y2: height - 28 }),
        svg("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, percent(value))]),
      Object.entries(now()).map(([kind, found], row) => {
        const y = 58 + 82 * row, [mean, half] = interval(found);
        return svg("g", { class: kind },
          left > 50 ? svg("text", { class: "station", x: 0, y: y + 5 }, kind) : svg("text", { class: "station", x: left, y: y - 26 }, kind),
          found.map((value, seed) => svg("circle", { cx: x(value), cy: y + ((seed % 5) - 2) * 7, r: 5 })),
          svg("line", { class: "interval", x1: x(Math.max(0, mean - half)), x2: x(Math.min(1, mean + half)), y1: y + 26, y2: y + 26 }),
          svg("line", { class: "interval", x1: x(mean), x2: x(mean), y1: y + 20, y2: y + 32 }));
      })));
  });

  function tell() {
    const { plain, ...versions } = now();
    const differences = Object.entries(versions).map(([kind, found]) => {
      const [mean, half] = interval(found.map((value, seed) => value - plain[seed]));
      const better = (MEASURES[state.measure].wanted === "more") === mean > 0 ? kind : "plain attention";
      return `${kind} − plain = ${mean < 0 ? "" : "+"}${text(100 * mean, 1)} ± ${text(100 * half, 1)} percentage points: ` +
        `${Math.abs(mean) < half ? "the interval contains 0, so this may be chance" : `${better} does better`}.`;
    });
    say(status, `${title()}. Each version is compared with the plain model of the same seed. ${differences.join(" ")}`);
  }

  function set(change) {
    Object.assign(state, change);
    layers.hidden = state.measure === "accuracy";
    draw();
    tell();
  }
  set({});
  figure.dataset.ready = "";
  return { state };
}
