/** What the figures share: elements, sliders, choices, numbers as text, colors of the theme, redrawing. */

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null));
  return node;
}

export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** A number as text, with a true minus sign. */
export const text = (x, digits = 2) => x.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
export const percent = (x, digits = 0) => `${text(100 * x, digits)} %`;

/** A result beside its name. Each figure announces one sentence, its status; the results themselves are silent. */
export const result = (attributes, ...children) => html("output", { "aria-live": "off", ...attributes }, ...children);

/** Write a sentence that is announced, unless it stands there already. */
export function say(status, sentence) {
  if (status.textContent !== sentence) status.textContent = sentence;
}

/** A labeled slider with its value beside it; `show` writes the value. */
export function slider({ id, label, min, max, step, value, show = text, change }) {
  const output = result({ for: id });
  const input = html("input", { id, type: "range", min, max, step, value });
  const tell = () => { output.textContent = show(input.valueAsNumber); input.setAttribute("aria-valuetext", output.textContent); };
  input.addEventListener("input", () => { tell(); change(input.valueAsNumber); });
  tell();
  const node = html("div", { class: "slider" }, html("label", { for: id }, label), output, input);
  return { node, input, set: (x) => { input.value = x; tell(); } };
}

/** One choice of several: radio buttons that look like one bar. `options` are [value, content] pairs. */
export function choice({ name, legend, options, value, change, hidden = false }) {
  const buttons = options.map(([option, content, title]) => html("label", { title },
    html("input", { type: "radio", name, value: option, checked: option === value, onchange: () => change(option) }),
    html("span", {}, content)));
  return html("fieldset", { class: "choice" }, html("legend", { class: hidden ? "unseen" : null }, legend), html("div", {}, buttons));
}

/** Draw now and whenever the width of `box` changes; returns a function that draws again. */
export function responsive(box, draw) {
  let width = 0;
  const again = () => { if (width) draw(width); };
  new ResizeObserver(() => {
    const now = Math.floor(box.clientWidth);
    if (now !== width) { width = now; again(); }
  }).observe(box);
  width = Math.floor(box.clientWidth);
  again();
  return again;
}

/** A color of the theme as [r, g, b]. */
export function color(name) {
  const probe = html("i", { class: `is-${name}` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return found;
}

/** Call `redraw` when the system changes between light and dark. */
export const onTheme = (redraw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

/** The weight from which a color is full, and how strong the color of a smaller weight is. */
export const FULL = 0.5;
export const strength = (weight) => Math.min(1, Math.abs(weight) / FULL) ** 0.5;
