/** The look-up of chapter 05: how many numbers each kind of model finds, by the length of the sequence; five seeds each. */

import { html, percent, responsive, svg, text } from "./page.js";

const mean = (numbers) => numbers.reduce((a, b) => a + b) / numbers.length;

export async function resultsFigure(figure) {
  const { lengths, found } = await (await fetch("results.json")).json(), kinds = Object.entries(found);
  const box = html("div", { class: "dots" });
  figure.querySelector(".stage").replaceChildren(box);

  responsive(box, (width) => {
    const height = 280, left = 58, right = 52, top = 12, bottom = 46;
    const x = (place) => left + (place / (lengths.length - 1)) * (width - left - right), y = (share) => top + (1 - share) * (height - top - bottom);
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": `Numbers found, means over five seeds. ${lengths.map((length, place) =>
      `${length} tokens: ${kinds.map(([kind, seeds]) => `${kind} ${percent(mean(seeds[place]))}`).join(", ")}`).join("; ")}.` },
      [0, 0.5, 1].map((share) => [svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
        svg("text", { x: left - 18, y: y(share) + 4, "text-anchor": "end" }, percent(share))]),
      lengths.map((length, place) => svg("text", { x: x(place), y: height - 26, "text-anchor": "middle" }, text(length, 0))),
      svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "tokens in a sequence"),
      kinds.map(([kind, seeds], row) => svg("g", { class: kind },
        svg("polyline", { points: seeds.map((at, place) => `${x(place)},${y(mean(at))}`).join(" ") }),
        seeds.flatMap((at, place) => at.map((share) => svg("circle", { cx: x(place) + 7 * (row - 1), cy: y(share), r: 4 }))),
        svg("text", { class: "station", x: width - right + 14, y: y(mean(seeds.at(-1))) + (kind === "plain" ? -3 : kind === "v1" ? 13 : 5) }, kind)))));
  });
  figure.dataset.ready = "";
}
