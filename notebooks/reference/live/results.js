/** What notebook 09 measured: five seeds of each kind, with the interval of their difference. */

import { choice, html, percent, responsive, svg, text } from "./page.js";

const T_95 = 2.776; // Student's t for 4 degrees of freedom: five seeds
const LABELS = {
  noise: ["attention to noise", "Share of attention that the last layer gives to noise, in rows of 256 tokens"],
  answer: ["attention to the answer", "Share of attention that the last layer gives to the answer, in rows of 256 tokens"],
  "accuracy, short rows": ["accuracy, 32 tokens", "Share of values found in rows of 32 tokens"],
  "accuracy, rows of 64": ["accuracy, 64 tokens", "Share of values found in rows of 64 tokens"],
  "accuracy, long rows": ["accuracy, 256 tokens", "Share of values found in rows of 256 tokens"],
};

export function interval(numbers) {
  const mean = numbers.reduce((a, b) => a + b) / numbers.length;
  const variance = numbers.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (numbers.length - 1);
  return [mean, T_95 * Math.sqrt(variance / numbers.length)];
}

export async function resultsFigure(figure) {
  const measures = await (await fetch("results.json")).json();
  const state = { measure: measures[0] };
  const stage = figure.querySelector(".stage"), box = html("div", { class: "dots" }), status = html("p", { class: "status", role: "status" });
  stage.replaceChildren(choice({ name: "results-measure", legend: "measure", value: measures[0].name, options: measures.map(({ name }) => [name, LABELS[name][0]]),
    change: (name) => { state.measure = measures.find((measure) => measure.name === name); draw(); tell(); } }), box, status);

  const draw = responsive(box, (width) => {
    const { name, numbers } = state.measure, height = 292, left = width < 560 ? 12 : 112, right = 20;
    const x = (value) => left + value * (width - left - right), ticks = [0, 0.25, 0.5, 0.75, 1];
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": `${LABELS[name][1]}, five seeds each. ${Object.entries(numbers).map(([kind, found]) =>
      `${kind}: mean ${text(100 * interval(found)[0], 1)} %, from ${text(100 * Math.min(...found), 1)} to ${text(100 * Math.max(...found), 1)} %`).join("; ")}.` },
      ticks.map((value) => [svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 8, y2: height - 28 }),
        svg("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, percent(value))]),
      Object.entries(numbers).map(([kind, found], row) => {
        const y = 58 + 82 * row, [mean, half] = interval(found);
        return svg("g", { class: kind },
          left > 50 ? svg("text", { class: "station", x: 0, y: y + 5 }, kind) : svg("text", { class: "station", x: left, y: y - 26 }, kind),
          found.map((value, seed) => svg("circle", { cx: x(value), cy: y + ((seed % 5) - 2) * 7, r: 5 })),
          svg("line", { class: "interval", x1: x(Math.max(0, mean - half)), x2: x(Math.min(1, mean + half)), y1: y + 26, y2: y + 26 }),
          svg("line", { class: "interval", x1: x(mean), x2: x(mean), y1: y + 20, y2: y + 32 }));
      })));
  });

  function tell() {
    const { name, numbers: { plain, ...versions }, wanted } = state.measure;
    const differences = Object.entries(versions).map(([kind, found]) => {
      const [mean, half] = interval(found.map((value, seed) => value - plain[seed]));
      const better = (wanted === "more") === mean > 0 ? kind : "plain attention";
      return `${kind} − plain = ${mean < 0 ? "" : "+"}${text(100 * mean, 1)} ± ${text(100 * half, 1)} percentage points: ` +
        `${Math.abs(mean) < half ? "the interval contains 0, so this may be chance" : `${better} does better`}.`;
    });
    status.textContent = `${LABELS[name][1]}, difference by seed. ${differences.join(" ")}`;
  }
  tell();
  figure.dataset.ready = "";
  return { state };
}
