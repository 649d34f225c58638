/** The reader's own sentence: maps by layer and pair, one query's weights, and λ of a layer pulled by hand. */

import { newest } from "./engine.js";
import { colour, FULL, html, onTheme, percent, slider, strength, text } from "./page.js";

export const MOST = 64; // tokens that are read
const WRITTEN = 24, SHOWN = 8;
const MAPS = [["first", "A₁"], ["second", "A₂"], ["difference", "A₁ − λ A₂"]];

/** Rows of the difference of two maps. */
const subtract = (first, second, lambda) => first.map((row, t) => row.map((a, s) => a - lambda * second[t][s]));

/** Draw a map as one pixel for each weight; `rgb` has the theme's colours for plus and minus. */
function paint(canvas, rows, rgb, takenAway = false) {
  const T = rows.length, context = canvas.getContext("2d");
  canvas.width = canvas.height = T;
  const image = context.createImageData(T, T);
  rows.forEach((row, t) => row.forEach((weight, s) => {
    image.data.set([...rgb[weight < 0 || takenAway ? "minus" : "plus"], 255 * strength(weight)], 4 * (t * T + s));
  }));
  context.putImageData(image, 0, 0);
}

/** `share` is called with each new reading, for the figures that show other sides of it. */
export async function sentenceFigure(figure, engine, share) {
  const { lambdas: trained, pairs } = await engine.about;
  const state = { layer: 4, pair: 0, query: 0, lambdas: [...trained], told: [...trained], shown: null };
  let words = null, read, pulled, rgb; // the text with the trained λ, and with those that the reader has set
  const stage = figure.querySelector(".stage");

  const input = html("textarea", { id: "sentence-text", rows: 2, spellcheck: "false", autocomplete: "off" },
    "There was once a king who had three sons. The eldest son was very proud, and the youngest");
  const left = html("p", { class: "small", id: "sentence-left" });
  const overview = html("fieldset", { class: "overview" }, html("legend", {}, "Layer and pair of heads, each a map A₁ − λ A₂"));
  const thumbs = trained.map((_, layer) => Array.from({ length: pairs }, (_, pair) => html("canvas", { "aria-hidden": "true" })));
  const layerNames = trained.map(() => html("span", { class: "small" }));
  trained.forEach((_, layer) => overview.append(html("div", { class: "layer" }, layerNames[layer], thumbs[layer].map((canvas, pair) =>
    html("label", {}, html("input", { type: "radio", name: "sentence-pair", value: `${layer} ${pair}`,
      checked: layer === state.layer && pair === state.pair, "aria-label": `layer ${layer}, pair ${pair}`,
      onchange: () => choose({ layer, pair }) }), canvas)))));

  const tokens = html("fieldset", { class: "tokens" });
  const canvases = Object.fromEntries(MAPS.map(([key, name]) => {
    const canvas = html("canvas", { role: "img" });
    return [key, { canvas, name, line: html("i"), node: null }];
  }));
  const pointed = html("p", { class: "pointed", "aria-hidden": "true" });
  const mapsBox = html("div", { class: "maps" }, MAPS.map(([key, name]) =>
    html("div", {}, html("p", {}, html("b", {}, name)), html("div", { class: "canvas" }, canvases[key].canvas, canvases[key].line))));
  const role = html("span", { id: "sentence-role" });
  const legend = html("p", { class: "small legend" }, "queries down, keys across · ", html("span", { class: "swatch minus" }), ` −${FULL} `,
    html("span", { class: "ramp" }), ` ${FULL} `, html("span", { class: "swatch plus" }), role);
  const table = html("tbody");
  const numbers = html("details", {}, html("summary", {}, "The numbers of the chosen token"), html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of the chosen token" },
    html("table", { id: "sentence-numbers" }, html("thead", {}, html("tr", {}, ["token", "A₁", "A₂", "A₁ − λ A₂"].map((name) => html("th", { scope: "col" }, name)))), table)));

  const pull = slider({ id: "sentence-lambda", label: "λ of this layer", min: -1, max: 2, step: 0.01, value: trained[state.layer],
    change: (x) => { state.lambdas[state.layer] = x; again(); } });
  const reset = html("button", { type: "button", onclick: () => setAll(trained) }, "all λ as trained");
  const none = html("button", { type: "button", onclick: () => { state.lambdas[state.layer] = 0; again(); } }, "λ = 0 in this layer");
  const nowhere = html("button", { type: "button", onclick: () => setAll(trained.map(() => 0)) }, "λ = 0 in all layers");
  const next = html("tbody");
  const moved = html("output", { id: "sentence-moved" });
  const status = html("p", { class: "status", role: "status" });
  const write = html("button", { type: "button", onclick: continueBoth }, "Let the model go on");
  const written = { trained: html("p", { class: "written" }), pulled: html("p", { class: "written" }) };

  stage.replaceChildren(
    html("label", { class: "above", for: "sentence-text" }, "Your text (English; the model knows fairy tales)"), input, left,
    html("div", { class: "sentence" }, overview, html("div", {}, mapsBox, pointed, legend)), tokens, numbers,
    html("div", { class: "pull" },
      html("div", {}, pull.node, html("div", { class: "buttons" }, none, nowhere, reset), status,
        html("p", {}, "The two distributions differ in ", moved, " of their probability.")),
      html("table", { class: "next", id: "sentence-next" }, html("caption", {}, "The next token: as trained, and with your λ"),
        html("thead", {}, html("tr", {}, ["token", "as trained", "with your λ"].map((name) => html("th", { scope: "col" }, name)))), next)),
    html("div", { class: "go-on" }, write,
      html("div", {}, html("p", { class: "small" }, "as trained"), written.trained), html("div", {}, html("p", { class: "small" }, "with your λ"), written.pulled)));

  function setAll(values) {
    state.lambdas = [...values];
    again();
  }

  /** Read the text with the reader's λ, and where the text is new with the trained ones. */
  const again = newest(async () => {
    const asked = { text: input.value, most: MOST };
    if (asked.text !== words) {
      read = await engine.ask("read", { ...asked, lambdas: trained });
      words = asked.text;
      state.query = read.ids.length - 1;
      tellStory("trained", "");
      tellStory("pulled", "");
      share(read);
    }
    if (!isCurrent(state.told)) tellStory("pulled", "");
    const same = state.lambdas.every((lambda, layer) => lambda === trained[layer]);
    pulled = same ? read : await engine.ask("read", { ...asked, lambdas: state.lambdas });
    await draw();
  });

  function choose(change) {
    Object.assign(state, change);
    return draw();
  }

  async function draw() {
    rgb ??= { plus: colour("plus"), minus: colour("minus") };
    const { layer, pair } = state, T = pulled.ids.length, lambda = state.lambdas[layer];
    left.textContent = pulled.left ? `${T} tokens are read, ${pulled.left} more are left out.` : `${T} tokens, of at most ${MOST}.`;
    thumbs.forEach((row, l) => {
      layerNames[l].textContent = `${l}: λ ${text(state.lambdas[l])}`;
      row.forEach((canvas, p) => paint(canvas, subtract(pulled.first[l][p], pulled.second[l][p], state.lambdas[l]), rgb));
    });
    const maps = { first: pulled.first[layer][pair], second: pulled.second[layer][pair] };
    maps.difference = subtract(maps.first, maps.second, lambda);
    for (const [key, name] of MAPS) {
      const { canvas, line } = canvases[key];
      paint(canvas, maps[key], rgb, key === "second" && lambda >= 0);
      canvas.setAttribute("aria-label", `${name}, layer ${layer}, pair ${pair}: ${T} queries down, ${T} keys across`);
      line.style.insetBlockStart = `${(100 * state.query) / T}%`;
      line.style.blockSize = `${100 / T}%`;
    }
    role.textContent = ` · A₂ is drawn in the colour of what is ${lambda < 0 ? "added, as λ is below 0" : "taken away"}`;
    pull.set(lambda);
    drawTokens(maps);
    await drawNext();
    tell(maps);
    figure.dataset.ready = "";
    Object.assign(state, { maps, pulled, read, shown: words });
  }

  function drawTokens(maps) {
    const T = pulled.ids.length;
    if (tokens.querySelectorAll("input").length !== T || tokens.dataset.text !== words) {
      tokens.dataset.text = words;
      tokens.replaceChildren(html("legend", {}, "The query: choose the token that looks; colours show where it looks, by A₁ − λ A₂"),
        html("div", {}, pulled.labels.map((label, t) => html("label", {},
          html("input", { type: "radio", name: "sentence-query", value: t, onchange: () => choose({ query: t }) }), html("span", {}, label)))));
    }
    const row = maps.difference[state.query];
    tokens.querySelectorAll("label").forEach((label, s) => {
      label.firstChild.checked = s === state.query;
      const weight = row[s] ?? 0;
      label.lastChild.style.backgroundColor = s > state.query ? "" : `rgb(${rgb[weight < 0 ? "minus" : "plus"].join(" ")} / ${strength(weight).toFixed(3)})`;
      label.classList.toggle("later", s > state.query);
    });
    table.replaceChildren(...Array.from(row, (weight, s) => html("tr", {}, html("th", { scope: "row" }, pulled.labels[s]),
      [maps.first[state.query][s], maps.second[state.query][s], weight].map((x) => html("td", {}, text(x, 4))))));
  }

  async function drawNext() {
    const larger = read.next.map((p, id) => Math.max(p, pulled.next[id]));
    const ids = [...larger.keys()].sort((a, b) => larger[b] - larger[a]).slice(0, SHOWN).sort((a, b) => read.next[b] - read.next[a]);
    const labels = await engine.ask("label", { ids }), full = larger[ids.reduce((a, b) => (larger[a] > larger[b] ? a : b))];
    const bar = (p, kind) => {
      const fill = html("i", { class: kind });
      fill.style.inlineSize = `${(100 * p) / full}%`;
      return html("td", {}, html("span", { class: "bar" }, fill), html("span", { class: "p" }, percent(p, 1)));
    };
    next.replaceChildren(...ids.map((id, i) => html("tr", {}, html("th", { scope: "row" }, labels[i]), bar(read.next[id], "was"), bar(pulled.next[id], "is"))));
    moved.textContent = percent(read.next.reduce((sum, p, id) => sum + Math.abs(p - pulled.next[id]), 0) / 2, 1);
    Object.assign(state, { likely: labels[ids.indexOf(ids.reduce((a, b) => (pulled.next[a] > pulled.next[b] ? a : b)))] });
  }

  function tell({ difference }) {
    const row = difference[state.query], top = row.reduce((best, x, s) => (Math.abs(x) > Math.abs(row[best]) ? s : best), 0);
    const why = row[top] >= 0 ? "" : state.lambdas[state.layer] > 1 ? "; negative, because A₂ leads" : "; negative: there λ A₂ is more than A₁";
    const changed = state.lambdas.filter((lambda, layer) => lambda !== trained[layer]).length;
    status.textContent = `Layer ${state.layer}, pair ${state.pair}: “${pulled.labels[state.query]}” gives most${row[top] < 0 ? ", by size," : ""} to “${pulled.labels[top]}” ` +
      `(${text(row[top])}${why}); the row sums to ${text(row.reduce((a, b) => a + b, 0))}. ` +
      `${changed ? `λ changed in ${changed} layer${changed > 1 ? "s" : ""}` : "All λ as trained"}: most likely next is “${state.likely}”.`;
  }

  const isCurrent = (lambdas) => state.lambdas.every((lambda, layer) => lambda === lambdas[layer]);

  /** Write a story under its caption; without a story the caption is hidden. */
  function tellStory(kind, story) {
    written[kind].textContent = story;
    written[kind].parentElement.hidden = !story;
  }

  async function continueBoth() {
    write.disabled = true;
    const asked = { text: input.value, most: MOST, count: WRITTEN };
    state.told = [...state.lambdas];
    for (const [kind, lambdas] of [["trained", trained], ["pulled", state.told]]) {
      const show = (more) => {
        const stale = input.value !== asked.text || (kind === "pulled" && !isCurrent(lambdas));
        if (!stale) tellStory(kind, `… ${more.trimStart()}`);
      };
      show(await engine.ask("write", { ...asked, lambdas }, show));
    }
    write.disabled = false;
  }

  for (const [key] of MAPS) {
    const { canvas } = canvases[key];
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), T = pulled.ids.length;
      const cell = (value, size) => Math.min(T - 1, Math.max(0, Math.floor((value / size) * T)));
      return { t: cell(event.clientY - box.top, box.height), s: cell(event.clientX - box.left, box.width) };
    };
    canvas.addEventListener("pointermove", (event) => {
      const { t, s } = at(event);
      pointed.textContent = s > t ? `“${pulled.labels[t]}” does not see “${pulled.labels[s]}”, which comes later`
        : `“${pulled.labels[t]}” → “${pulled.labels[s]}”: ${MAPS.map(([k, name]) => `${name} ${text(state.maps[k][t][s], 3)}`).join(", ")}`;
    });
    canvas.addEventListener("pointerleave", () => { pointed.textContent = ""; });
    canvas.addEventListener("click", (event) => choose({ query: at(event).t }));
  }
  input.addEventListener("input", () => again());
  onTheme(() => { rgb = null; if (pulled) draw(); });
  await again();
  return { state, trained };
}
