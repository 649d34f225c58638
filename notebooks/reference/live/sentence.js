/** The reader's own sentence: maps by layer and pair, one query's weights, λ of a layer pulled by hand, a plain-attention baseline. */

import { BUNDLED, DIFFERENTIAL, PLAIN, newest } from "./engine.js";
import { choice, color, FULL, html, onTheme, percent, result, say, slider, strength, text } from "./page.js";

export const MOST = 64; // tokens that are read
const WRITTEN = 24, SHOWN = 8;
const MAPS = { first: "A₁", second: "A₂", difference: "A₁ − λ A₂" };

/** Rows of the difference of two maps. */
const subtract = (first, second, lambda) => first.map((row, t) => row.map((a, s) => a - lambda * second[t][s]));

/** Draw a map as one pixel for each weight; `rgb` has the theme's colors for plus and minus. */
function paint(canvas, rows, rgb, takenAway = false) {
  const T = rows.length, context = canvas.getContext("2d");
  canvas.width = canvas.height = T;
  const image = context.createImageData(T, T);
  rows.forEach((row, t) => row.forEach((weight, s) => {
    image.data.set([...rgb[weight < 0 || takenAway ? "minus" : "plus"], 255 * strength(weight)], 4 * (t * T + s));
  }));
  context.putImageData(image, 0, 0);
}

async function smallResults() {
  const answer = await fetch("small_models/about.json");
  if (!answer.ok) throw new Error(`${answer.url}: got status ${answer.status}`);
  return answer.json();
}

/** How the two small models were trained, and how well each predicts. */
const aboutSmallModels = ({ steps, tokens, context, differential, plain, bundled }) =>
  `Two models of ${text(plain.parameters / 1e6)} million parameters, a differential one and its plain-attention baseline, trained with the same settings on the same text in the same order: ` +
  `${steps.toLocaleString("en")} steps, ${text(tokens / 1e6, 1)} million tokens. On unseen text the differential one needs ${text(differential.bits_per_byte, 3)} bits per byte, the baseline ` +
  `${text(plain.bits_per_byte, 3)}, and the model of 2.9 million parameters ${text(bundled.bits_per_byte, 3)}, all in sequences of ${context} tokens. This is one run of each: so small a difference may be chance.`;

export async function sentenceFigure(figure, engine) {
  let { lambdas: trained, pairs } = await engine.about;
  const state = { folder: BUNDLED, layer: 3, pair: 2, query: 0, lambdas: [...trained], told: [...trained], shown: null };
  let wanted = state.folder, words = null, rgb, results;
  let read, pulled, baseline; // the text by the model with the trained λ, with those that the reader has set, by the baseline
  let next; // what may follow it: see likeliest
  const stage = figure.querySelector(".stage");

  const models = choice({ name: "sentence-model", legend: "The model", value: BUNDLED,
    options: [[BUNDLED, "2.9 million parameters"], [DIFFERENTIAL, "a small one, beside its baseline"]],
    change: (folder) => { wanted = folder; again(); } });
  const note = html("p", { class: "small", id: "sentence-about", "aria-live": "polite" });
  const input = html("textarea", { id: "sentence-text", rows: 2, spellcheck: "false", autocomplete: "off" },
    "Once upon a time there was a little girl who lived with her mother. One day her mother said to the little");
  const left = html("p", { class: "small", id: "sentence-left" });
  const overview = html("fieldset", { class: "overview" });
  let thumbs, layerNames;

  const tokens = html("fieldset", { class: "tokens" });
  const canvases = Object.fromEntries([...Object.keys(MAPS), "one", "other"].map((key) =>
    [key, { canvas: html("canvas", { role: "img" }), title: html("b"), line: html("i") }]));
  const mapBox = (key) => html("div", {}, html("p", {}, canvases[key].title), html("div", { class: "canvas" }, canvases[key].canvas, canvases[key].line));
  const pointed = html("p", { class: "pointed", "aria-hidden": "true" });
  const baselineMaps = html("div", { class: "maps baseline" }, mapBox("one"), mapBox("other"), html("p", { class: "small" },
    "The baseline’s two heads in the places of the pair. The runs are separate, so heads in the same place need not do the same."));
  const role = html("span", { id: "sentence-role" });
  const legend = html("p", { class: "small legend" }, "queries down, keys across · ", html("span", { class: "swatch minus" }), ` −${FULL} `,
    html("span", { class: "ramp" }), ` ${FULL} `, html("span", { class: "swatch plus" }), role);
  const numbersHead = html("thead"), table = html("tbody");
  const numbers = html("details", {}, html("summary", {}, "The numbers of the chosen token"), html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of the chosen token" },
    html("table", { id: "sentence-numbers" }, numbersHead, table)));

  const pull = slider({ id: "sentence-lambda", label: "λ of this layer", min: -1, max: 2, step: 0.01, value: trained[state.layer],
    change: (x) => { state.lambdas[state.layer] = x; again(); } });
  const reset = html("button", { type: "button", onclick: () => setAll(trained) }, "all λ as trained");
  const none = html("button", { type: "button", onclick: () => { state.lambdas[state.layer] = 0; again(); } }, "λ = 0 in this layer");
  const nowhere = html("button", { type: "button", onclick: () => setAll(trained.map(() => 0)) }, "λ = 0 in all layers");
  const nextTable = html("table", { class: "next", id: "sentence-next" });
  const moved = result({ id: "sentence-moved" }), apart = result({ id: "sentence-apart" });
  const baselineApart = html("p", {}, "Between the differential model and the baseline, both as trained, ", apart, " of the probability lies on other tokens.");
  const status = html("p", { class: "status", role: "status" });
  const write = html("button", { type: "button", onclick: goOn }, "Continue the text");
  const storyNames = { trained: "as trained", pulled: "with your λ", baseline: "the baseline" }, written = {};
  const told = html("p", { class: "unseen", role: "status", id: "sentence-told" });
  const stories = Object.entries(storyNames).map(([kind, name]) =>
    html("div", {}, html("p", { class: "small" }, name), (written[kind] = html("p", { class: "written" }))));

  stage.replaceChildren(
    html("label", { class: "above", for: "sentence-text" }, "Your text (English; the model knows fairy tales)"), input, left,
    models, note, html("div", { class: "sentence" }, overview, html("div", {},
      html("div", { class: "maps" }, Object.keys(MAPS).map(mapBox)), baselineMaps, pointed, legend)), tokens, numbers,
    html("div", { class: "pull" },
      html("div", {}, pull.node, html("div", { class: "buttons" }, none, nowhere, reset), status,
        html("p", {}, "Your λ moves ", moved, " of the probability to other tokens."), baselineApart), nextTable),
    html("div", { class: "go-on" }, write, stories, told));
  build();

  /** Make what depends on the number of layers and pairs, and show the baseline only beside the small differential model. */
  function build() {
    thumbs = trained.map(() => Array.from({ length: pairs }, () => html("canvas", { "aria-hidden": "true" })));
    layerNames = trained.map(() => html("span", { class: "small" }));
    overview.replaceChildren(html("legend", {}, "Layer and pair of heads, each a map A₁ − λ A₂"), ...thumbs.map((row, layer) =>
      html("div", { class: "layer" }, layerNames[layer], row.map((canvas, pair) => html("label", {},
        html("input", { type: "radio", name: "sentence-pair", value: `${layer} ${pair}`, checked: layer === state.layer && pair === state.pair,
          "aria-label": `layer ${layer}, pair ${pair}`, onchange: () => choose({ layer, pair }) }), canvas)))));
    for (const part of [baselineMaps, baselineApart]) part.hidden = state.folder === BUNDLED;
  }

  /** Load another model, and say so; if it cannot be loaded, keep the one before. */
  async function load(folder) {
    if (folder === BUNDLED) return engine.about;
    note.textContent = "The small models are loading: 1.8 MB.";
    try {
      [results] = await Promise.all([results ?? smallResults(), engine.load(folder), engine.load(PLAIN)]);
      return await engine.load(folder);
    } catch (error) {
      note.textContent = `The small models could not be loaded: ${error.message}`;
      wanted = state.folder;
      models.querySelector(`[value="${wanted}"]`).checked = true;
      return null;
    }
  }

  function use(folder, about) {
    ({ lambdas: trained, pairs } = about);
    Object.assign(state, { folder, layer: Math.min(state.layer, trained.length - 1), lambdas: [...trained], told: [...trained] });
    note.textContent = folder === BUNDLED ? "" : aboutSmallModels(results);
    build();
  }

  function setAll(values) {
    state.lambdas = [...values];
    again();
  }

  /** Read the text with the reader's λ, and where the text or the model is new also with the trained ones and by the baseline. */
  const again = newest(async () => {
    if (!isCurrent(state.told)) tellStory("pulled", "");
    const folder = wanted, asked = { folder, text: input.value, most: MOST };
    const about = folder === state.folder ? null : await load(folder);
    if (folder !== wanted && !about) return;
    const isNew = about !== null || asked.text !== words, lambdas = about ? about.lambdas : [...state.lambdas];
    const byModel = isNew ? await engine.ask("read", asked) : read;
    const byReader = about || isCurrent(trained) ? byModel : await engine.ask("read", { ...asked, lambdas });
    const byBaseline = !isNew ? baseline : folder === BUNDLED ? null : await engine.ask("read", { ...asked, folder: PLAIN });
    next = await likeliest(byModel, byReader, byBaseline);
    // From here on nothing waits, so that what is drawn belongs together.
    [read, pulled, baseline] = [byModel, byReader, byBaseline];
    if (about) use(folder, about);
    if (isNew) Object.keys(storyNames).forEach((kind) => tellStory(kind, ""));
    if (asked.text !== words) state.query = read.ids.length - 1;
    words = asked.text;
    draw();
  });

  /**
   * The tokens to show: those with the largest probability in any column, in an order that the reader's λ leaves as it is;
   * and `likely`, the first of each column.
   */
  async function likeliest(byModel, byReader, byBaseline) {
    const columns = [["as trained", "was", byModel], ["with your λ", "is", byReader], ["baseline", "baseline", byBaseline]]
      .filter(([, , reading]) => reading).map(([name, kind, reading]) => [name, kind, reading.next]);
    const largest = (among) => byModel.next.map((_, id) => Math.max(...among.map(([, , p]) => p[id])));
    const larger = largest(columns), asTrained = largest(columns.filter(([, kind]) => kind !== "is"));
    const ids = [...larger.keys()].sort((a, b) => larger[b] - larger[a]).slice(0, SHOWN), full = larger[ids[0]];
    ids.sort((a, b) => asTrained[b] - asTrained[a]);
    const tops = columns.map(([, , p]) => p.reduce((best, x, id) => (x > p[best] ? id : best), 0));
    const labels = await engine.ask("label", { ids: [...ids, ...tops] });
    return { columns, ids, full, labels, likely: labels.slice(ids.length) };
  }

  function choose(change) {
    Object.assign(state, change);
    draw();
  }

  function draw() {
    rgb ??= { plus: color("plus"), minus: color("minus") };
    const { layer, pair } = state, T = pulled.ids.length, lambda = state.lambdas[layer];
    left.textContent = pulled.left ? `${T} tokens are read, ${pulled.left} more are left out.` : `${T} ${T === 1 ? "token" : "tokens"}, of at most ${MOST}.`;
    thumbs.forEach((row, l) => {
      layerNames[l].textContent = `${l}: λ ${text(state.lambdas[l])}`;
      row.forEach((canvas, p) => paint(canvas, subtract(pulled.first[l][p], pulled.second[l][p], state.lambdas[l]), rgb));
    });
    const maps = { first: pulled.first[layer][pair], second: pulled.second[layer][pair] };
    maps.difference = subtract(maps.first, maps.second, lambda);
    if (baseline) Object.assign(maps, { one: baseline.map[layer][pair], other: baseline.map[layer][pair + pairs] });
    for (const [key, rows] of Object.entries(maps)) {
      const { canvas, title, line } = canvases[key];
      paint(canvas, rows, rgb, key === "second" && lambda >= 0);
      title.textContent = nameOf(key);
      canvas.setAttribute("aria-label", `${nameOf(key)}, layer ${layer}, pair ${pair}: ${T} queries down, ${T} keys across. ${finding(rows[state.query])}`);
      line.style.insetBlockStart = `${(100 * state.query) / T}%`;
      line.style.blockSize = `${100 / T}%`;
    }
    role.textContent = ` · A₂ is ${lambda < 0 ? "blue: λ is below 0, so it is added" : "orange: it is taken away"}`;
    pull.set(lambda);
    drawTokens(maps);
    drawNext();
    tell(maps);
    figure.dataset.ready = "";
    Object.assign(state, { maps, pulled, read, baseline, shown: words });
  }

  const strongest = (row) => row.reduce((best, x, s) => (Math.abs(x) > Math.abs(row[best]) ? s : best), 0);
  const finding = (row) => `“${pulled.labels[state.query]}” gives most to “${pulled.labels[strongest(row)]}”, ${text(row[strongest(row)])}.`;
  const nameOf = (key) => MAPS[key] ?? `baseline A, head ${state.pair + (key === "other" ? pairs : 0)}`;

  function drawTokens(maps) {
    const T = pulled.ids.length;
    if (tokens.querySelectorAll("input").length !== T || tokens.dataset.text !== words) {
      tokens.dataset.text = words;
      tokens.replaceChildren(html("legend", {}, "The query: choose the token that looks; colors show where it looks, by A₁ − λ A₂"),
        html("div", {}, pulled.labels.map((label, t) => html("label", {},
          html("input", { type: "radio", name: "sentence-query", value: t, onchange: () => choose({ query: t }) }), html("span", {}, label)))));
    }
    const row = maps.difference[state.query];
    tokens.querySelectorAll("label").forEach((label, s) => {
      label.firstChild.checked = s === state.query;
      const weight = row[s] ?? 0;
      label.lastChild.style.backgroundColor = s > state.query ? "" : `rgb(${rgb[weight < 0 ? "minus" : "plus"].join(" ")} / ${strength(weight).toFixed(3)})`;
      label.classList.toggle("later", s > state.query);
      label.firstChild.setAttribute("aria-label", `${pulled.labels[s]}, ${s > state.query ? "comes later" : `weight ${text(weight)}`}`);
    });
    numbersHead.replaceChildren(html("tr", {}, ["token", ...Object.keys(maps).map(nameOf)].map((name) => html("th", { scope: "col" }, name))));
    table.replaceChildren(...Array.from(row, (_, s) => html("tr", {}, html("th", { scope: "row" }, pulled.labels[s]),
      Object.values(maps).map((rows) => html("td", {}, text(rows[state.query][s], 4))))));
  }

  function drawNext() {
    const { columns, ids, full, labels } = next;
    const bar = (p, kind) => {
      const fill = html("i", { class: kind });
      fill.style.inlineSize = `${(100 * p) / full}%`;
      return html("td", {}, html("span", { class: "bar" }, fill), html("span", { class: "p" }, percent(p, 1)));
    };
    nextTable.classList.toggle("three", columns.length === 3);
    nextTable.replaceChildren(
      html("caption", {}, `The next token: as trained, ${baseline ? "with your λ, and by the baseline" : "and with your λ"}`),
      html("thead", {}, html("tr", {}, ["token", ...columns.map(([name]) => name)].map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, ids.map((id, i) => html("tr", {}, html("th", { scope: "row" }, labels[i]), columns.map(([, kind, p]) => bar(p[id], kind))))));
    const apartness = (p) => percent(read.next.reduce((sum, q, id) => sum + Math.abs(p[id] - q), 0) / 2, 1);
    moved.textContent = apartness(pulled.next);
    apart.textContent = baseline ? apartness(baseline.next) : "";
  }

  function tell(maps) {
    const row = maps.difference[state.query], top = strongest(row);
    const why = row[top] >= 0 ? "" : state.lambdas[state.layer] > 1 ? "; negative, because A₂ leads" : "; negative: there λ A₂ is more than A₁";
    const changed = state.lambdas.filter((lambda, layer) => lambda !== trained[layer]).length;
    const [, likely, likelyByBaseline] = next.likely;
    const looks = (key) => `${nameOf(key).replace("baseline A, ", "")} gives most to “${pulled.labels[strongest(maps[key][state.query])]}”`;
    say(status, `Layer ${state.layer}, pair ${state.pair}: “${pulled.labels[state.query]}” gives most${row[top] < 0 ? ", by size," : ""} to “${pulled.labels[top]}” ` +
      `(${text(row[top])}${why}); the row sums to ${text(row.reduce((a, b) => a + b, 0))}. ` +
      `${changed ? `λ changed in ${changed} layer${changed > 1 ? "s" : ""}` : "All λ as trained"}: most likely next is “${likely}”.` +
      (baseline ? ` In the baseline, ${looks("one")}, ${looks("other")}; most likely next is “${likelyByBaseline}”.` : ""));
  }

  const isCurrent = (lambdas) => state.lambdas.every((lambda, layer) => lambda === lambdas[layer]);

  /** Write a story under its caption; without a story the caption is hidden. */
  function tellStory(kind, story) {
    written[kind].textContent = story;
    written[kind].parentElement.hidden = !story;
    told.textContent = "";
  }

  /** Let each model continue the text, and announce what they wrote at the end. The button keeps the focus meanwhile. */
  async function goOn() {
    if (write.getAttribute("aria-disabled") === "true") return;
    write.setAttribute("aria-disabled", "true");
    const { folder } = state, asked = { text: input.value, most: MOST, count: WRITTEN };
    state.told = [...state.lambdas];
    const tellers = [["trained", { folder, lambdas: trained }], ...(isCurrent(trained) ? [] : [["pulled", { folder, lambdas: state.told }]]),
      ...(baseline ? [["baseline", { folder: PLAIN }]] : [])];
    for (const [kind, teller] of tellers) {
      const show = (more) => {
        const stale = input.value !== asked.text || state.folder !== folder || (kind === "pulled" && !isCurrent(teller.lambdas));
        if (!stale) tellStory(kind, `… ${more.trimStart()}`);
      };
      show(await engine.ask("write", { ...asked, ...teller }, show));
    }
    say(told, tellers.filter(([kind]) => written[kind].textContent).map(([kind]) => `${storyNames[kind]}: ${written[kind].textContent}`).join(" "));
    write.setAttribute("aria-disabled", "false");
  }

  for (const { canvas } of Object.values(canvases)) {
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), T = pulled.ids.length;
      const cell = (value, size) => Math.min(T - 1, Math.max(0, Math.floor((value / size) * T)));
      return { t: cell(event.clientY - box.top, box.height), s: cell(event.clientX - box.left, box.width) };
    };
    canvas.addEventListener("pointermove", (event) => {
      const { t, s } = at(event);
      pointed.textContent = s > t ? `“${pulled.labels[t]}” does not see “${pulled.labels[s]}”, which comes later`
        : `“${pulled.labels[t]}” → “${pulled.labels[s]}”: ${Object.entries(state.maps).map(([key, rows]) => `${nameOf(key)} ${text(rows[t][s], 3)}`).join(", ")}`;
    });
    canvas.addEventListener("pointerleave", () => { pointed.textContent = ""; });
    canvas.addEventListener("click", (event) => choose({ query: at(event).t }));
  }
  input.addEventListener("input", () => again());
  onTheme(() => { rgb = null; if (pulled) draw(); });
  await again();
  return { state };
}
