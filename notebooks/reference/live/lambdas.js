/** λ of each layer of the model in this page, beside the value near which it started. */

import { responsive, svg, text } from "./page.js";

export function lambdasFigure(figure, { lambdas, starts }) {
  const box = figure.querySelector(".stage");
  const height = 240, left = 40, right = 10, top = 14, bottom = 30, low = -1.15, high = 1.85;
  responsive(box, (width) => {
    const x = (layer) => left + ((layer + 0.5) / lambdas.length) * (width - left - right);
    const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label":
      `λ by layer: ${lambdas.map((value, layer) => `layer ${layer} began near ${text(starts[layer])} and has ${text(value)}`).join("; ")}.` },
      [0, 1].map((value) => [svg("line", { class: value ? "grid" : "grid zero", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, text(value, 0))]),
      lambdas.map((value, layer) => svg("g", {},
        svg("line", { class: "stem", x1: x(layer), x2: x(layer), y1: y(starts[layer]), y2: y(value) }),
        svg("circle", { class: "start", cx: x(layer), cy: y(starts[layer]), r: 8 }),
        svg("circle", { class: "end", cx: x(layer), cy: y(value), r: 5 }),
        svg("text", { class: "value", x: x(layer), y: y(value) + (value < 0 ? 21 : -13), "text-anchor": "middle" }, text(value)),
        svg("text", { x: x(layer), y: height - 8, "text-anchor": "middle" }, width < 420 ? String(layer) : `layer ${layer}`))),
      width < 420 ? null : [[1, -7, "A₂ leads"], [0, 17, "adds"]].map(([value, dy, words]) => svg("text", { x: left + 3, y: y(value) + dy }, words)),
      width < 420 ? svg("text", { x: 0, y: height - 8 }, "layer") : null));
  });
}
