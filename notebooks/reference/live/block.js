/** A token's path through one layer: the size (root mean square) of its vector at each station. */

import { html, responsive, say, slider, svg, text } from "./page.js";

/** The stations in order: name in the reading, what is written (_between these_ a subscript), and on which track. */
const STATIONS = [
  ["x", "x enters the layer", "stream"],
  ["normed", "RMSNorm and its weights", "attention"],
  ["difference", "(A₁ − λ A₂) V, each pair", "attention"],
  ["heads", "norm of each pair, × (1 − λ_init_)", "attention"],
  ["attention", "output matrix: what attention adds", "attention"],
  ["y", "x + attention", "stream"],
  ["normed again", "RMSNorm and its weights", "mlp"],
  ["mlp", "SwiGLU: what it adds", "mlp"],
  ["out", "x + SwiGLU leaves the layer", "stream"],
];
const plain = (words) => words.replaceAll("_", "");
const label = (words) => words.split("_").map((part, i) =>
  svg("tspan", { dy: i === 0 ? 0 : i % 2 ? 3 : -3, "font-size": i % 2 ? "0.75em" : null }, part));
const SMALLEST = 0.05, LARGEST = 20;

export function blockFigure(figure) {
  const state = { layer: 2, token: 0, read: null };
  const stage = figure.querySelector(".stage"), box = html("div", { class: "path" }), status = html("p", { class: "status", role: "status" });
  const tokens = html("select", { id: "block-token", onchange: () => { state.token = tokens.selectedIndex; draw(); tell(); } });
  const layer = slider({ id: "block-layer", label: "layer", min: 0, max: 5, step: 1, value: state.layer, show: (x) => String(x),
    change: (x) => { state.layer = x; draw(); tell(); } });
  stage.replaceChildren(html("div", { class: "controls" }, html("div", { class: "picked" }, html("label", { for: "block-token" }, "token"), tokens), layer.node), box, status);

  const sizes = () => state.read.sizes[state.token][state.layer];
  const draw = responsive(box, (width) => {
    if (!state.read) return;
    const wide = width > 560, row = wide ? 36 : 50, top = 28, left = wide ? 264 : 14, right = 62, height = top + row * STATIONS.length + 8;
    const x = (size) => left + (Math.log(size / SMALLEST) / Math.log(LARGEST / SMALLEST)) * (width - left - right);
    const y = (i) => top + row * i + row / 2 + (wide ? 0 : 9);
    const found = sizes(), points = (name) => [found[name]].flat();
    const track = (kind, names) => svg("polyline", { class: `track ${kind}`,
      points: names.map((name) => `${x(Math.max(...points(name))).toFixed(1)},${y(STATIONS.findIndex(([station]) => station === name))}`).join(" ") });
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": `Sizes on the way: ${STATIONS.map(([name, words]) =>
      `${plain(words)} ${points(name).map((size) => text(size)).join(", ")}`).join("; ")}.` },
      [0.1, 1, 10].map((size) => [svg("line", { class: size === 1 ? "grid zero" : "grid", x1: x(size), x2: x(size), y1: top - 6, y2: height }),
        svg("text", { x: x(size), y: 14, "text-anchor": "middle" }, String(size))]),
      track("stream", ["x", "y", "out"]), track("attention", ["x", "normed", "difference", "heads", "attention"]), track("mlp", ["y", "normed again", "mlp"]),
      STATIONS.map(([name, words, kind], i) => svg("g", { class: kind },
        wide ? svg("text", { class: "station", x: left - 18, y: y(i) + 5, "text-anchor": "end" }, label(words)) : svg("text", { class: "station", x: 2, y: y(i) - 15 }, label(words)),
        points(name).map((size) => svg("circle", { cx: x(size), cy: y(i), r: kind === "stream" ? 8 : 6 })),
        svg("text", { class: "value", x: width - 2, y: y(i) + 5, "text-anchor": "end" }, text(Math.max(...points(name))))))));
    for (const words of box.querySelectorAll(".station")) { // no line shows between them
      const { x, y, width, height } = words.getBBox();
      words.before(svg("rect", { class: "ground", x, y, width, height }));
    }
  });

  /** Say what is drawn; only a choice made in this figure is announced. */
  function tell(announced = "polite") {
    status.setAttribute("aria-live", announced);
    const found = sizes(), before = found.difference, grown = found.out / found.x;
    say(status, `“${state.read.labels[state.token]}” in layer ${state.layer}: the pairs give vectors of size ` +
      `${before.map((size) => text(size)).join(", ")}; norm and factor make each ${text(found.heads)}. ` +
      `The stream goes from ${text(found.x)} to ${text(found.out)}, ${text(grown, 1)} times.`);
  }

  return {
    state,
    show(read) {
      state.read = read;
      state.token = read.ids.length - 1;
      tokens.replaceChildren(...read.labels.map((label, t) => html("option", { value: t, selected: t === state.token }, label)));
      draw();
      tell("off");
      figure.dataset.ready = "";
    },
  };
}
