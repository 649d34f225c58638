/** Figure 1: one query, 48 keys, of which one matters. Two maps, their difference, and what is left for the needle. */

import { dot, softmax } from "./model.js";
import { html, percent, responsive, result, say, slider, svg, text } from "./page.js";

export const KEYS = 48, NEEDLE = 30, LARGEST_D = 128;
export const TOLD = 0.6; // how much of the query the needle's key holds in the first map

const MEAN_OF = 200, LAMBDAS = Array.from({ length: 41 }, (_, i) => i / 20);

/** Standard normal numbers from a seed: mulberry32, then Box and Muller. */
function normals(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** A query and the keys of both maps, each of d numbers. The two sets of keys have the correlation `shared`; the first does not change with it. */
export function vectors({ seed, d, shared }) {
  const next = normals(seed), vector = () => Float64Array.from({ length: LARGEST_D }, next).subarray(0, d);
  const raw = vector(), length = Math.sqrt(dot(raw, raw));
  const query = raw.map((x) => (x / length) * Math.sqrt(d)); // so that noise scores have a spread of 1 at every d
  const noise = Array.from({ length: KEYS }, vector), other = Array.from({ length: KEYS }, vector);
  const first = noise.map((key, s) => key.map((x, i) => x + (s === NEEDLE ? TOLD * query[i] : 0)));
  const second = noise.map((key, s) => key.map((x, i) => shared * x + Math.sqrt(1 - shared ** 2) * other[s][i]));
  return { query, first, second };
}

export function maps({ query, first, second }) {
  const row = (keys) => softmax(keys.map((key) => dot(query, key) / Math.sqrt(query.length)));
  return { first: row(first), second: row(second) };
}

export const difference = ({ first, second }, lambda) => first.map((x, s) => x - lambda * second[s]);
export const share = (row) => Math.abs(row[NEEDLE]) / row.reduce((sum, x) => sum + Math.abs(x), 0);

/** The share of the needle at each λ, as the mean over 200 drawings of scores with the same shared part and signal. */
const drawings = (() => { const next = normals(1); return Array.from({ length: MEAN_OF * KEYS * 2 }, next); })();
export function meanShares({ d, shared }) {
  const total = LAMBDAS.map(() => 0);
  for (let n = 0; n < MEAN_OF; n++) {
    const noise = (s, part) => drawings[(n * KEYS + s) * 2 + part];
    const scores = Array.from({ length: KEYS }, (_, s) => noise(s, 0));
    const first = softmax(scores.map((z, s) => z + (s === NEEDLE ? TOLD * Math.sqrt(d) : 0)));
    const second = softmax(scores.map((z, s) => shared * z + Math.sqrt(1 - shared ** 2) * noise(s, 1)));
    LAMBDAS.forEach((lambda, i) => { total[i] += share(difference({ first, second }, lambda)) / MEAN_OF; });
  }
  return total;
}

/**
 * The λ at which noise of one shape in both maps cancels, and the λ up to which the needle's share is above what A₁
 * gives: notebook 03's rule, with p and q for the needle's weights in A₁ and A₂.
 */
export function rule({ first, second }) {
  const p = first[NEEDLE], q = second[NEEDLE];
  return { best: (1 - p) / (1 - q), last: (2 * p * (1 - p)) / (p + q - 2 * p * q) };
}

const START = { lambda: 0.75, shared: 0.99, d: 16, seed: 290 };
const SAME_SHAPE = 0.9; // the rule is drawn for this correlation of the maps’ noise and more
const SIZES = [4, 8, 16, 32, 64, 128];

export function needleFigure(figure, tries) {
  const state = { ...START };
  const stage = figure.querySelector(".stage");

  const sliders = {
    lambda: slider({ id: "needle-lambda", label: "λ: how much is subtracted", min: 0, max: 2, step: 0.05, value: state.lambda,
      change: (x) => set({ lambda: x }) }),
    shared: slider({ id: "needle-shared", label: "ρ: correlation of the maps’ noise", min: 0, max: 1, step: 0.01, value: state.shared,
      change: (x) => set({ shared: x }) }),
    d: slider({ id: "needle-d", label: "d: numbers in a key", min: 0, max: SIZES.length - 1, step: 1, value: SIZES.indexOf(state.d),
      show: (i) => String(SIZES[i]), change: (i) => set({ d: SIZES[i] }) }),
  };
  const rows = [
    { key: "first", name: "A₁", about: "the first map", signed: false },
    { key: "second", name: "A₂", about: "the second map", signed: false },
    { key: "difference", name: "A₁ − λ A₂", about: "what is left", signed: true },
  ].map((row) => ({ ...row, bars: svg("svg", { class: `bars ${row.key}`, preserveAspectRatio: "none", role: "img",
    viewBox: `0 ${row.signed ? -1 : 0} ${KEYS} ${row.signed ? 2 : 1}` }) }));
  const mark = () => {
    const node = html("span", { class: "mark", "aria-hidden": "true" }, "needle");
    node.style.marginInlineStart = `${(100 * (NEEDLE + 0.5)) / KEYS}%`;
    return node;
  };
  const curve = html("div", { class: "curve" });
  const pointed = html("p", { class: "pointed", "aria-hidden": "true" });
  const drawn = html("div", { class: "rows" }, rows.map((row) =>
    html("div", { class: "row" }, html("p", {}, html("b", {}, row.name), ` ${row.about}`), row.bars, row.signed ? null : mark())), pointed);
  const readings = Object.fromEntries(["weight", "share", "sum"].map((name) => [name, result({ id: `needle-${name}` })]));
  const byRule = html("p", { class: "small", id: "needle-rule" }), filled = html("i"), status = html("p", { class: "status", role: "status" });
  const again = html("button", { type: "button", onclick: () => set({ seed: state.seed + 1 }) }, "New noise");

  stage.append(
    html("div", { class: "needle" },
      html("div", { class: "sliders" }, Object.values(sliders).map(({ node }) => node)), drawn, tries,
      html("div", { class: "panel" },
        html("dl", { class: "readings" },
          html("div", {}, html("dt", {}, "the needle’s weight"), html("dd", {}, readings.weight)),
          html("div", {}, html("dt", {}, "its share of Σ|weight|"), html("dd", {}, readings.share, html("span", { class: "meter" }, filled))),
          html("div", {}, html("dt", {}, "sum of the row, 1 − λ"), html("dd", {}, readings.sum))),
        html("p", { class: "small" }, html("b", {}, "The needle’s share at every λ"), ": this noise ",
          html("span", { class: "key solid" }), " and the mean of 200 others ", html("span", { class: "key dashed" })),
        curve, byRule, again)),
    status);

  let now;
  function set(change) {
    Object.assign(state, change);
    for (const name of ["lambda", "shared"]) sliders[name].set(state[name]);
    sliders.d.set(SIZES.indexOf(state.d));
    const both = maps(vectors(state));
    now = { ...both, difference: difference(both, state.lambda) };
    now.curve = LAMBDAS.map((lambda) => share(difference(both, lambda)));
    now.mean = meanShares(state);
    now.rule = state.shared >= SAME_SHAPE ? rule(both) : null;
    drawBars();
    drawCurve();
    tell();
  }

  function drawBars() {
    const full = Math.max(...[...now.first, ...now.second, ...now.difference].map(Math.abs));
    for (const { key, name, bars } of rows) {
      const row = now[key];
      bars.replaceChildren(...row.map((weight, s) => svg("rect", { x: s + 0.12, width: 0.76,
        y: weight > 0 ? (bars.viewBox.baseVal.y < 0 ? -weight / full : 1 - weight / full) : 0, height: Math.abs(weight) / full,
        class: `${s === NEEDLE ? "the-needle " : ""}${weight < 0 ? "minus" : "plus"}` })),
        ...(key === "difference" ? [svg("line", { x1: 0, x2: KEYS, y1: 0, y2: 0 })] : []));
      bars.setAttribute("aria-label", `${name}: 48 bars. Key ${NEEDLE}, the needle: ${text(row[NEEDLE])}. ` +
        `Largest of the others: ${text(Math.max(...row.filter((_, s) => s !== NEEDLE)))}; smallest: ${text(Math.min(...row))}.`);
    }
  }

  const drawCurve = responsive(curve, (width) => {
    if (!now) return;
    const height = 130, left = 40, bottom = 22, right = 6, top = 6;
    const x = (lambda) => left + (lambda / 2) * (width - left - right), y = (part) => top + (1 - part) * (height - top - bottom);
    const line = (values) => values.map((part, i) => `${i ? "L" : "M"}${x(LAMBDAS[i]).toFixed(1)} ${y(part).toFixed(1)}`).join("");
    curve.replaceChildren(svg("svg", { width, height, "aria-hidden": "true" },
      [0, 0.5, 1].map((part) => [svg("line", { class: "grid", x1: left, x2: width - right, y1: y(part), y2: y(part) }),
        svg("text", { x: left - 6, y: y(part) + 4, "text-anchor": "end" }, percent(part).replace(" ", ""))]),
      [0, 0.5, 1, 1.5, 2].map((lambda) => svg("text", { x: x(lambda), y: height - 6, "text-anchor": "middle" }, lambda ? String(lambda) : "λ = 0")),
      Object.values(now.rule ?? {}).filter((lambda) => lambda <= 2).map((lambda) =>
        svg("line", { class: "rule", x1: x(lambda), x2: x(lambda), y1: top, y2: height - bottom })),
      svg("path", { class: "mean", d: line(now.mean) }), svg("path", { class: "this", d: line(now.curve) }),
      svg("circle", { cx: x(state.lambda), cy: y(share(now.difference)), r: 5 })));
  });

  function tell() {
    const before = share(now.first), after = share(now.difference);
    readings.weight.textContent = `${text(now.first[NEEDLE])} → ${text(now.difference[NEEDLE])}`;
    readings.share.textContent = `${percent(before)} → ${percent(after)}`;
    readings.sum.textContent = text(now.difference.reduce((a, b) => a + b, 0));
    byRule.textContent = now.rule
      ? `Dotted: by the rule below, noise of one shape cancels at λ = ${text(now.rule.best)}, and the gain ends at ${text(now.rule.last)}.`
      : `No dotted lines: the rule below is for ρ of ${text(SAME_SHAPE)} and more.`;
    filled.style.inlineSize = `${100 * after}%`;
    const verdict = state.lambda === 0 ? "Plain attention: nothing is subtracted."
      : Math.abs(Math.round(100 * after) - Math.round(100 * before)) <= 1 ? "Subtraction changes almost nothing for the needle here."
      : `Subtraction ${after > before ? "helps" : "hurts"} the needle here.`;
    say(status, `${verdict} Its share of all |weight| goes from ${percent(before)} to ${percent(after)}; ` +
      `its own weight from ${text(now.first[NEEDLE])} to ${text(now.difference[NEEDLE])}.`);
  }

  for (const { bars } of rows) {
    bars.addEventListener("pointermove", (event) => {
      const box = bars.getBoundingClientRect(), s = Math.min(KEYS - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * KEYS)));
      pointed.textContent = `key ${s}${s === NEEDLE ? ", the needle" : ""}: A₁ ${text(now.first[s], 3)}, A₂ ${text(now.second[s], 3)}, ` +
        `A₁ − λ A₂ ${text(now.difference[s], 3)}`;
    });
    bars.addEventListener("pointerleave", () => { pointed.textContent = ""; });
  }
  tries.addEventListener("click", ({ target }) => {
    const wanted = target.closest("button")?.dataset.set;
    if (!wanted) return;
    set({ ...START, ...JSON.parse(wanted) });
    drawn.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  });
  set({});
  return { state, now: () => now, set };
}
