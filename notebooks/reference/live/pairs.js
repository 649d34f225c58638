/** Which heads form a pair: the attention variants as wires. */

import { choice, html, responsive, say, svg } from "./page.js";

/** By variant: for each output, the query heads and the key/value heads that it reads; H query and K key heads. */
export const VARIANTS = {
  hf: { name: "v1, Hugging Face", outputs: (H, K) => Array.from({ length: H / 2 }, (_, i) => {
    const key = Math.floor(i / (H / K));
    return { queries: [i, i + H / 2], keys: [key, key + K / 2] };
  }) },
  paper: { name: "v1, authors’ code", outputs: (H, K) => Array.from({ length: H / 2 }, (_, i) => {
    const key = Math.floor(i / (H / K));
    return { queries: [2 * i, 2 * i + 1], keys: [2 * key, 2 * key + 1] };
  }) },
  v2: { name: "v2", outputs: (H, K) => Array.from({ length: H / 2 }, (_, i) => {
    const key = Math.floor(i / (H / 2 / K));
    return { queries: [2 * i, 2 * i + 1], keys: [key] };
  }) },
  plain: { name: "plain", outputs: (H, K) => Array.from({ length: H }, (_, i) => ({ queries: [i], keys: [Math.floor(i / (H / K))] })) },
};
const H = 8;

export function pairsFigure(figure) {
  const state = { variant: "hf", keys: 4, output: 0 };
  const stage = figure.querySelector(".stage"), box = html("div", { class: "wires" }), status = html("p", { class: "status", role: "status" });
  const outputs = html("div");
  const set = (change) => { Object.assign(state, { output: 0 }, change); choices(); draw(); tell(); };
  const wired = () => VARIANTS[state.variant].outputs(H, state.keys);
  const choices = () => outputs.replaceChildren(choice({ name: "pairs-output", legend: "output", value: state.output,
    options: wired().map((_, i) => [i, String(i)]), change: (output) => { state.output = output; draw(); tell(); } }));
  stage.append(html("div", { class: "controls" },
    choice({ name: "pairs-variant", legend: "variant", value: state.variant, options: Object.entries(VARIANTS).map(([key, { name }]) => [key, name]), change: (variant) => set({ variant }) }),
    choice({ name: "pairs-keys", legend: "key/value heads", value: state.keys, options: [4, 2].map((K) => [K, String(K)]), change: (keys) => set({ keys }) }),
    outputs), box, status);

  const draw = responsive(box, (width) => {
    const height = 300, size = Math.min(38, width / (H + 1.5)), rows = { query: 30, output: 150, key: 270 };
    const place = (i, count) => ((i + 0.5) / count) * width, found = wired();
    const wire = (from, to, row, kind, on) => svg("path", { class: `wire ${kind}${on ? " on" : ""}`,
      d: `M${from} ${row === "query" ? rows.query + size / 2 : rows.key - size / 2} C${from} ${(rows[row] + rows.output) / 2},${to} ${(rows[row] + rows.output) / 2},${to} ${row === "query" ? rows.output - size / 2 : rows.output + size / 2}` });
    const kinds = ["first", "second"];
    const wires = found.flatMap(({ queries, keys }, i) => [
      ...queries.map((q, n) => ["query", place(q, H), i, kinds[n]]), ...keys.map((k, n) => ["key", place(k, state.keys), i, keys.length > 1 ? kinds[n] : "both"])])
      .sort((a, b) => (a[2] === state.output) - (b[2] === state.output));
    const head = (x, row, label, kind, on) => svg("g", { class: `head ${kind}${on ? " on" : ""}` },
      svg("rect", { x: x - size / 2, y: rows[row] - size / 2, width: size, height: size, rx: 7 }), svg("text", { x, y: rows[row] + 5, "text-anchor": "middle" }, label));
    const chosen = found[state.output], subscript = (n) => [...String(n)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");
    const kindOf = (list, n) => (list.includes(n) ? kinds[list.indexOf(n)] : "");
    box.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": words() },
      wires.map(([row, from, i, kind]) => wire(from, place(i, found.length), row, kind, i === state.output)),
      Array.from({ length: H }, (_, q) => head(place(q, H), "query", `q${subscript(q)}`, kindOf(chosen.queries, q), chosen.queries.includes(q))),
      Array.from({ length: state.keys }, (_, k) => head(place(k, state.keys), "key", size < 34 ? `k${subscript(k)}` : `kv${subscript(k)}`, chosen.keys.length > 1 ? kindOf(chosen.keys, k) : "", chosen.keys.includes(k))),
      found.map((_, i) => head(place(i, found.length), "output", String(i), "out", i === state.output))));
  });

  function words() {
    const { queries, keys } = wired()[state.output], list = (name, heads) => heads.map((n) => `${name} ${n}`).join(" and ");
    return state.variant === "plain" ? `Output ${state.output} reads ${list("query", queries)} and ${list("key", keys)}; nothing is subtracted.`
      : `Output ${state.output}: query ${queries[0]} makes A₁ with key ${keys[0]}, query ${queries[1]} makes A₂ with key ${keys[1] ?? keys[0]}; the value is ` +
        `${keys.length > 1 ? `that of heads ${keys[0]} and ${keys[1]} side by side` : `that of head ${keys[0]}`}.`;
  }
  const tell = () => say(status, words());
  set({});
  return { state };
}
