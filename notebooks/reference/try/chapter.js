/** Makes the cells of a notebook's page run: their code becomes an editor, and what they print replaces what is stored. */

import { start } from "./cells.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("cells.css", import.meta.url);
document.head.append(style);

const element = (name, properties) => Object.assign(document.createElement(name), properties);

/** The editor, the buttons and the output of one cell, in the place of what was there. */
function cell(place, number) {
  const title = `cell ${number + 1}`, shown = place.querySelector(".cell_input .highlight");
  const area = element("textarea", { value: shown.textContent.trimEnd(), spellcheck: false, autocapitalize: "off" });
  area.setAttribute("aria-label", `Code of ${title}`);
  const run = element("button", { type: "button", className: "run", textContent: "Run" });
  const reset = element("button", { type: "button", className: "reset", textContent: "Reset" });
  run.setAttribute("aria-label", `Run ${title}`);
  reset.setAttribute("aria-label", `Reset ${title}`);
  const editor = element("div", { className: "editor" }), inner = document.createElement("div");
  const buttons = element("div", { className: "buttons" });
  inner.append(area);
  editor.append(inner);
  buttons.append(run, reset);
  shown.parentElement.replaceWith(editor, buttons);
  const output = document.createElement("output"), stored = place.querySelector(":scope > .cell_output");
  run.addEventListener("click", () => stored?.remove(), { once: true });
  place.append(output);
  place.classList.add("runs");
  return { place, area, run, reset, output };
}

/** Let a chapter run. `bar` gets the words and buttons of all its cells together. */
export function runChapter(bar) {
  const cells = [...document.querySelectorAll("div.cell")].filter((one) => one.querySelector(".cell_input")).map(cell);
  const status = element("span", { textContent: "Python starts with the first cell that you run." });
  status.setAttribute("role", "status");
  const all = element("button", { type: "button", textContent: "Run all cells" });
  const restart = element("button", { type: "button", textContent: "Restart Python", hidden: true });
  all.addEventListener("click", () => cells.forEach(({ run }) => run.click()));
  bar.classList.add("stays");
  bar.replaceChildren(status, " ", all, " ", restart);
  start(cells, { status, restart, chapter: true });
}
