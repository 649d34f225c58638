/** Rotary positions as dials: each plane, two numbers of a query or key, is rotated by position · frequency. */

import { html, result, say, slider, svg, text } from "./page.js";

export const D = 32, BASE = 10000, HALF = D / 2; // as in the model of this page
const LENGTHS = { query: 50, key: 34 }; // of the hands in a large dial
export const frequency = (i) => BASE ** (-i / HALF);

/** A fixed query and key: in plane i it has a length and an angle. */
const spread = (i, start, step) => (start + step * i) % (2 * Math.PI);
export const QUERY = Array.from({ length: HALF }, (_, i) => ({ length: 1, angle: spread(i, 0.4, 0.35) }));
export const KEY = Array.from({ length: HALF }, (_, i) => ({ length: 1, angle: spread(i, 0.9, 0.5) }));

/** The numbers of a vector, in halves: plane i has (x_i, x_{i + d/2}). */
export const numbers = (planes) =>
  [...planes.map(({ length, angle }) => length * Math.cos(angle)), ...planes.map(({ length, angle }) => length * Math.sin(angle))];

/** What plane i adds to q·k, where the query stands at `position + distance` and the key at `position`. */
export const product = (i, position, distance) => QUERY[i].length * KEY[i].length *
  Math.cos(QUERY[i].angle + (position + distance) * frequency(i) - KEY[i].angle - position * frequency(i));

export function rotationFigure(figure) {
  const state = { position: 3, distance: 5, plane: 0 };
  const stage = figure.querySelector(".stage"), clocks = html("div", { class: "clocks" }), large = html("div", { class: "dials" });
  const status = html("p", { class: "status", role: "status" }), score = result({ id: "rotation-score" });
  const change = (name) => (x) => { state[name] = x; draw(); };
  const position = slider({ id: "rotation-position", label: "move both: position of the key", min: 0, max: 200, step: 1, value: state.position, show: String, change: change("position") });
  const distance = slider({ id: "rotation-distance", label: "distance from key to query", min: 0, max: 100, step: 1, value: state.distance, show: String, change: change("distance") });

  const hand = (kind, angle, r, c) => svg("line", { class: `hand ${kind}`, x1: c, y1: c, x2: c + r * Math.cos(angle), y2: c - r * Math.sin(angle) });
  const angles = (i) => ({ query: QUERY[i].angle + (state.position + state.distance) * frequency(i), key: KEY[i].angle + state.position * frequency(i) });
  const dial = (kind, i) => svg("svg", { viewBox: "0 0 120 120", class: "dial", "aria-hidden": "true" },
    svg("circle", { cx: 60, cy: 60, r: 54 }), hand(`${kind} ghost`, (kind === "query" ? QUERY : KEY)[i].angle, LENGTHS[kind], 60), hand(kind, angles(i)[kind], LENGTHS[kind], 60));

  const buttons = Array.from({ length: HALF }, (_, i) => html("label", {}, html("input", { type: "radio", name: "rotation-plane", value: i, checked: i === state.plane,
    "aria-label": `plane ${i}, ${text(frequency(i), 4)} radians for each position`, onchange: () => change("plane")(i) }), html("span", { class: "clock" }), html("span", { class: "small" }, String(i))));
  clocks.append(html("fieldset", {}, html("legend", {}, "The 16 planes of a head, from the fastest to the slowest"), html("div", {}, buttons)));
  stage.append(html("div", { class: "rotation" }, large, html("div", { class: "panel" }, distance.node, position.node,
    html("dl", { class: "readings" }, html("div", {}, html("dt", {}, "q · k, over all 16 planes"), html("dd", {}, score))))), clocks, status);

  function draw() {
    const { plane: i, position: n, distance: m } = state, between = Math.acos(Math.cos(angles(i).query - angles(i).key));
    large.replaceChildren(...["query", "key"].map((kind) => html("div", {}, dial(kind, i),
      html("p", {}, html("b", {}, kind), ` at ${kind === "query" ? n + m : n}, rotated by `, result({ id: `rotation-${kind}` }, text((kind === "query" ? n + m : n) * frequency(i), 3)), " rad"))));
    buttons.forEach((label, j) => label.children[1].replaceChildren(svg("svg", { viewBox: "0 0 40 40", "aria-hidden": "true" },
      svg("circle", { cx: 20, cy: 20, r: 18 }), hand("key", angles(j).key, 9, 20), hand("query", angles(j).query, 15, 20))));
    const total = QUERY.reduce((sum, _, j) => sum + product(j, n, m), 0);
    score.textContent = text(total, 4);
    say(status, `Plane ${i} rotates by ${text(frequency(i), 4)} radians for each position. Query at ${n + m}, key at ${n}: the angle between the two hands is ` +
      `${text((between / Math.PI) * 180, 0)}°, this plane adds ${text(product(i, n, m), 3)}, and q · k is ${text(total, 3)}.`);
  }
  draw();
  return { state };
}
