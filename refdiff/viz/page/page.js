/* The page: what is chosen, and what is drawn from it. */

const data = JSON.parse(document.getElementById("data").textContent);
const maps = new Maps(data);
const titles = maps.paired ? { first: "A₁", second: "A₂", difference: "A₁ − λ A₂" } : { first: "A" };
const perToken = Array.isArray(data.lambdas?.[0]);
const variant = !maps.paired ? "plain" : perToken ? "v2" : "v1";
const result = maps.names[maps.names.length - 1];
const named = maps.size <= 24; // few enough that every token has its name beside a map
const state = {
  layer: data.layer ?? -1,
  pair: data.pair ?? -1,
  query: maps.size - 1,
  preview: null,
  color: result,
  threshold: 0,
  order: "",
};
let view = maps.view(state.layer, state.pair);
let full = fullColor(view);
const colors = { plus: "", minus: "" };

const $ = (id) => document.getElementById(id);
const shown = () => state.preview ?? state.query;
const signed = (value, decimals) => value.toFixed(decimals).replace("-", "−");
const digits = (value) => signed(value, 4);
const quoted = (key) => `“${data.tokens[key]}”`;

function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function rgba(value) {
  const [r, g, b] = colors[value < 0 ? "minus" : "plus"];
  return `rgba(${r}, ${g}, ${b}, ${strength(value, full).toFixed(3)})`;
}

function visible(value) {
  return Math.abs(value) >= state.threshold;
}

/* What is there from the beginning. */

function build() {
  const kind = maps.paired ? "pair" : "head";
  const heads = maps.paired ? "pairs of heads" : "heads";
  $("about").textContent = [
    data.model,
    `${maps.size} tokens`,
    `${maps.layers} layers of ${maps.pairs} ${heads}`,
    maps.paired ? "each pair has two maps, A₁ and A₂, and passes on A₁ − λ A₂" : "each head has one map, A",
    data.megabytes && `a large page, ${data.megabytes} MB: a choice may take a second to draw`,
  ]
    .filter(Boolean)
    .join(" · ");
  $("pair-name").textContent = maps.paired ? "Pair of heads" : "Head";
  for (const [id, count] of [["layer", maps.layers], ["pair", maps.pairs]]) {
    const options = [...Array(count).keys()].map((i) => element("option", { value: String(i), textContent: String(i) }));
    $(id).append(element("option", { value: "-1", textContent: "mean over all" }), ...options);
    $(id).value = String(state[id]);
    $(id).addEventListener("change", () => choose({ [id]: Number($(id).value) }));
  }
  for (const name of maps.names) {
    const radio = element("input", { type: "radio", name: "color", value: name, checked: name === state.color });
    radio.addEventListener("change", () => choose({ color: name }));
    $("colors").append(element("label", {}, [radio, ` ${titles[name]}`]));
  }
  $("colors").hidden = !maps.paired;
  $("threshold").addEventListener("input", () => choose({ threshold: Number($("threshold").value) }));
  $("order").addEventListener("change", () => choose({ order: $("order").value }));
  data.tokens.forEach((token, i) => {
    const option = element("div", { role: "option", tabIndex: -1, textContent: token });
    option.addEventListener("pointerenter", () => choose({ preview: i }));
    option.addEventListener("pointerleave", () => choose({ preview: null }));
    option.addEventListener("click", () => choose({ query: i }));
    option.addEventListener("focus", () => choose({ query: i }));
    $("tokens").append(option);
  });
  walk($("tokens"), () => 1);
  $("columns").append(
    ...["#", "token", ...maps.names.map((name) => titles[name])].map((text) =>
      element("th", { scope: "col", textContent: text }),
    ),
  );
  for (const name of maps.names) buildFigure(name);
  $("overview-note").textContent = `${titles[result]} of every layer and ${kind}, and the means; choose one.`;
  buildGrid(kind);
  $("guide").className = variant;
  $("precision").textContent =
    `Weights are kept in 16 bits: what is shown is within ${(data.error + 0.00005).toFixed(5)} of the model’s own. ` +
    "Colors grow with the root of a value, bars with the value. Made by refdiff attention; nothing is loaded from elsewhere.";
}

function buildFigure(name) {
  const canvas = element("canvas", { width: maps.size, height: maps.size, role: "img" });
  canvas.setAttribute("aria-label", `${titles[name]} of ${maps.size} queries, down, and as many keys, across`);
  const line = element("i", { hidden: true });
  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    const index = (at, length) => Math.max(0, Math.min(maps.size - 1, Math.floor((at / length) * maps.size)));
    return [index(event.clientY - box.top, box.height), index(event.clientX - box.left, box.width)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [query, key] = cell(event);
    choose({ preview: query });
    $("pointed").textContent =
      key > query
        ? `${quoted(query)} does not see ${quoted(key)}, which comes later`
        : `${quoted(query)} → ${quoted(key)}: ` +
          maps.names.map((n) => `${titles[n]} ${digits(view[n][maps.at(query, key)])}`).join(", ");
  });
  canvas.addEventListener("pointerleave", () => {
    choose({ preview: null });
    $("pointed").textContent = "";
  });
  canvas.addEventListener("click", (event) => choose({ query: cell(event)[0] }));
  const caption = element("figcaption", { textContent: titles[name] });
  const plot = element("div", { className: named ? "plot named" : "plot" }, [
    buildAxis("query"),
    element("div", { className: "canvas" }, [canvas, line]),
    buildAxis("key"),
  ]);
  $("figures").append(element("figure", {}, [caption, plot]));
}

/* The tokens beside a map, of many only the numbers of some, as the table has them: down for queries, across for keys. */
function buildAxis(which) {
  const step = named ? 1 : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => maps.size / s <= 8) ?? 2000;
  const axis = element("div", { className: `axis ${which}`, ariaHidden: "true" });
  axis.append(element("span", { className: "name", textContent: which }));
  for (let at = 0; at < maps.size; at += step) {
    const tick = element("span", { textContent: named ? data.tokens[at] : at, title: data.tokens[at] });
    tick.style[which === "key" ? "left" : "top"] = `${(100 * (at + 0.5)) / maps.size}%`;
    axis.append(tick);
  }
  return axis;
}

function buildGrid(kind) {
  const grid = $("grid");
  const side = maps.pairs > 8 ? "minmax(1.5rem, 2.2rem)" : "minmax(2.2rem, 4.5rem)";
  grid.style.gridTemplateColumns = `auto repeat(${maps.pairs + 1}, ${side})`;
  const pairs = [...Array(maps.pairs).keys(), -1];
  grid.append(element("span"));
  const mean = maps.pairs > 8 ? "all" : "mean"; // what fits above a small map
  for (const pair of pairs) grid.append(element("span", { className: "head", textContent: pair < 0 ? mean : pair }));
  for (const layer of [...Array(maps.layers).keys(), -1]) {
    const lambda = maps.paired ? `, λ ${signed(maps.lambdaOf(layer, -1, maps.size - 1), 2)}` : "";
    const named = perToken ? "" : lambda;
    grid.append(element("span", { textContent: (layer < 0 ? "mean" : `layer ${layer}`) + named }));
    for (const pair of pairs) {
      const where = `${layer < 0 ? "mean over layers" : `layer ${layer}`}, ${pair < 0 ? `mean over ${kind}s` : `${kind} ${pair}`}`;
      const button = element("button", { type: "button", tabIndex: -1, title: where }, [
        element("canvas", { width: maps.size, height: maps.size }),
      ]);
      button.setAttribute("aria-label", where);
      button.dataset.layer = layer;
      button.dataset.pair = pair;
      button.addEventListener("click", () => choose({ layer, pair }));
      grid.append(button);
    }
  }
  walk(grid, (key) => (key === "ArrowUp" || key === "ArrowDown" ? maps.pairs + 1 : 1));
}

/* One stop for the Tab key, arrows within it. */
function walk(box, step) {
  box.addEventListener("keydown", (event) => {
    const items = [...box.querySelectorAll("[tabindex]")];
    const here = items.indexOf(document.activeElement);
    const back = { ArrowLeft: 1, ArrowUp: 1 }[event.key];
    const on = { ArrowRight: 1, ArrowDown: 1 }[event.key];
    let next = here + step(event.key) * (on ? 1 : back ? -1 : 0);
    if (event.key === "Home") next = 0;
    else if (event.key === "End") next = items.length - 1;
    else if (!on && !back) return;
    event.preventDefault();
    if (here >= 0 && items[next]) items[next].focus();
  });
}

/* What changes. */

function choose(change) {
  const before = { ...state };
  Object.assign(state, change);
  if (Object.keys(change).every((name) => before[name] === state[name])) return;
  if (state.layer !== before.layer || state.pair !== before.pair) {
    view = maps.view(state.layer, state.pair);
    full = fullColor(view);
    drawAll();
  } else if ("threshold" in change) {
    drawAll();
  } else {
    drawQuery();
  }
  if (!("preview" in change)) say();
}

function drawAll() {
  $("layer").value = String(state.layer);
  $("pair").value = String(state.pair);
  $("threshold-value").textContent = state.threshold.toFixed(3);
  const canvases = [...$("figures").querySelectorAll("canvas")];
  maps.names.forEach((name, i) => drawMap(canvases[i], view[name], full));
  for (const button of $("grid").querySelectorAll("button")) {
    const pressed = Number(button.dataset.layer) === state.layer && Number(button.dataset.pair) === state.pair;
    button.setAttribute("aria-pressed", String(pressed));
    button.tabIndex = pressed ? 0 : -1;
  }
  $("scale-low").textContent = maps.paired ? `${digits(-full)} or less` : "0";
  $("scale-high").textContent = `${digits(full)} or more`;
  const stops = Array.from({ length: 21 }, (_, i) => rgba(full * (maps.paired ? i / 10 - 1 : i / 20)));
  $("scale-bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  drawQuery();
}

function drawMap(canvas, map, most) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(maps.size, maps.size);
  for (let query = 0; query < maps.size; query++) {
    for (let key = 0; key <= query; key++) {
      const value = map[maps.at(query, key)];
      if (!visible(value)) continue;
      image.data.set([...colors[value < 0 ? "minus" : "plus"], 255 * strength(value, most)], 4 * (query * maps.size + key));
    }
  }
  context.putImageData(image, 0, 0);
}

function drawThumbnails() {
  for (const button of $("grid").querySelectorAll("button")) {
    const one = maps.view(Number(button.dataset.layer), Number(button.dataset.pair));
    drawMap(button.firstChild, one[result], fullColor(one));
  }
}

function drawQuery() {
  const query = shown();
  [...$("tokens").children].forEach((option, key) => {
    const value = key <= query ? view[state.color][maps.at(query, key)] : 0;
    option.style.backgroundColor = key <= query && visible(value) ? rgba(value) : "transparent";
    option.classList.toggle("query", key === query);
    option.classList.toggle("later", key > query);
    option.setAttribute("aria-selected", String(key === state.query));
    option.tabIndex = key === state.query ? 0 : -1;
  });
  for (const line of $("figures").querySelectorAll("i")) {
    line.hidden = false;
    line.style.top = `${(100 * query) / maps.size}%`;
    line.style.height = `${100 / maps.size}%`;
  }
  drawLambda(query);
  drawProfile(query);
  drawNumbers(query);
}

function drawLambda(query) {
  if (!maps.paired) {
    $("lambda").textContent = "";
    return;
  }
  const mean = state.layer < 0 || (state.pair < 0 && perToken);
  const start = data.starts && state.layer >= 0 ? `, began near λ_init = ${digits(data.starts[state.layer])}` : "";
  const lambda = digits(maps.lambdaOf(state.layer, state.pair, query));
  const whose = perToken ? ` for ${quoted(query)}` : "";
  $("lambda").textContent = `${mean ? "mean λ" : "λ"} = ${lambda}${whose}${start}`;
}

const SVG = "http://www.w3.org/2000/svg";

function drawProfile(query) {
  $("profile-title").textContent = `Where ${quoted(query)} looks, key by key; all bars on one scale`;
  const parts = [];
  let most = 0;
  for (const name of maps.names) {
    for (let key = 0; key <= query; key++) most = Math.max(most, Math.abs(view[name][maps.at(query, key)]));
  }
  most = most || 1;
  for (const name of maps.names) {
    const both = name === "difference";
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 -1 ${maps.size} ${both ? 2 : 1}`);
    svg.setAttribute("preserveAspectRatio", "none");
    if (both) svg.classList.add("signed");
    for (let key = 0; key <= query; key++) {
      const value = view[name][maps.at(query, key)];
      const bar = document.createElementNS(SVG, "rect");
      const height = Math.abs(value) / most;
      const box = { x: key + 0.1, width: 0.8, y: value < 0 ? 0 : -height, height };
      for (const [attribute, number] of Object.entries(box)) bar.setAttribute(attribute, number);
      bar.classList.add(value < 0 ? "minus" : "plus");
      if (!visible(value)) bar.classList.add("faint");
      svg.append(bar);
    }
    const axis = document.createElementNS(SVG, "line");
    for (const [attribute, number] of Object.entries({ x1: 0, x2: maps.size, y1: 0, y2: 0 })) {
      axis.setAttribute(attribute, number);
    }
    svg.append(axis);
    parts.push(element("span", { textContent: titles[name] }), svg, element("span", { textContent: (both ? "±" : "") + digits(most) }));
  }
  $("profile").replaceChildren(...parts);
}

function drawNumbers(query) {
  const rows = [];
  const keys = [...Array(query + 1).keys()];
  const size = (key) => Math.abs(view[result][maps.at(query, key)]);
  if (state.order) keys.sort((a, b) => size(b) - size(a));
  for (const key of keys) {
    const values = maps.names.map((name) => view[name][maps.at(query, key)]);
    if (!values.some(visible)) continue;
    const cells = [
      element("td", { textContent: key }),
      element("th", { scope: "row", textContent: data.tokens[key] }),
      ...values.map((value) => element("td", { textContent: digits(value) })),
    ];
    rows.push(element("tr", { className: key === query ? "query" : "" }, cells));
  }
  $("numbers-title").textContent = `Numbers for ${quoted(query)}`;
  $("rows").replaceChildren(...rows);
  const hidden = query + 1 - rows.length;
  $("hidden").textContent = hidden
    ? `${hidden} of ${query + 1} keys are below ${state.threshold.toFixed(3)} in every map`
    : "";
}

/* For those who hear the page: what has been chosen, and where it looks most. */
function say() {
  const query = state.query;
  const looks = maps.names.map((name) => {
    const key = strongest(maps, view[name], query);
    return `${titles[name]} most at ${quoted(key)}, ${digits(view[name][maps.at(query, key)])}`;
  });
  $("status").textContent = `The chosen token, ${quoted(query)}, looks: ${looks.join("; ")}.`;
}

function recolor() {
  for (const sign of ["plus", "minus"]) {
    const probe = element("span", { className: `probe-${sign}` });
    document.body.append(probe);
    colors[sign] = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
  }
  drawThumbnails();
  drawAll();
}

$("theme").addEventListener("change", () => {
  document.documentElement.dataset.theme = $("theme").value;
  recolor();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
build();
recolor();
say();
