/** Cells that run in one Python: an editor, its buttons and its output each. Python starts with the first that is run. */

import { edit } from "./editor.js";
import { PYODIDE } from "./pyodide.js";

/**
 * Let cells run. Each is {place, area, run, reset, output}: its elements. `status` says how Python is; `restart` is the
 * button that ends it; `chapter` loads what notebooks need; `told` is called with what the worker says of a run's end.
 */
export function start(cells, { status, restart, chapter = false, told = () => {} }) {
  let worker, ready = false;
  const waiting = []; // numbers of cells, in the order in which they were asked to run: the first of them runs
  const loading = `Python is loading, about ${chapter ? 34 : 23} MB, once …`;
  cells.forEach((cell, number) => {
    const { place, area, run, reset, output } = cell, first = area.value;
    cell.start = () => {
      if (run.disabled) return;
      output.replaceChildren();
      place.classList.remove("wrong");
      run.disabled = true;
      python().postMessage({ number, code: area.value });
      waiting.push(number);
      say();
    };
    const draw = edit(area, cell.start);
    run.addEventListener("click", cell.start);
    reset.addEventListener("click", () => {
      area.value = first;
      draw();
    });
    run.hidden = reset.hidden = false;
  });

  function python() {
    if (worker) return worker;
    worker = new Worker(new URL(`worker.js${chapter ? "?chapter" : ""}`, import.meta.url), { type: "module" });
    worker.onmessage = ({ data: { number, kind, text, done, started, failed, ended, ...end } }) => {
      if (started) {
        ready = true;
        restart.hidden = false;
        say();
      }
      if (failed) fail(`Python could not be loaded: ${failed}`);
      if (ended) stop(`Python has ended (${ended}). The next cell starts it anew.`);
      if (kind) cells[number].output.append(shown(kind, text));
      if (!done) return;
      release(waiting.shift());
      say();
      cells[number].place.classList.toggle("wrong", !end.good);
      told(end);
    };
    worker.onerror = (event) => fail(`Python could not be started: ${event.message ?? "see the browser's console"}`);
    return worker;
  }

  /** Say which cell runs, on the buttons and above them all. */
  function say() {
    waiting.forEach((number, place) => { cells[number].run.textContent = ready && place === 0 ? "Running …" : "Waiting …"; });
    const others = waiting.length > 1 ? `, ${waiting.length - 1} more to run` : "";
    const running = waiting.length ? `Cell ${waiting[0] + 1} of ${cells.length} runs${others} …` : "Python is ready.";
    status.textContent = ready ? running : loading;
  }

  function release(number) {
    cells[number].run.disabled = false;
    cells[number].run.textContent = "Run";
  }

  /** End Python, with all that it knows: the only way out of an endless loop. */
  function stop(why) {
    worker?.terminate();
    worker = undefined;
    ready = false;
    restart.hidden = true;
    waiting.splice(0).forEach(release);
    status.textContent = why;
  }

  /** End Python, which did not start, and say so at the cells that wait for it. */
  function fail(why) {
    const left = waiting.map((number) => cells[number]);
    stop(why);
    for (const cell of left) {
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Try again";
      again.addEventListener("click", cell.start);
      cell.output.replaceChildren(`Python did not load from ${new URL(PYODIDE).host}. Check your connection to the network. `, again);
      cell.place.classList.add("wrong");
    }
  }
  restart.addEventListener("click", () => stop("Python was ended; the next cell starts it anew."));
}

/** What a cell prints, an image in base64, or HTML that refdiff's own objects draw, as elements. */
function shown(kind, text) {
  if (kind === "text") return document.createTextNode(text);
  if (kind === "image") {
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${text}`;
    image.alt = "What the cell has drawn";
    return image;
  }
  const frame = document.createElement("div");
  frame.innerHTML = text;
  return frame;
}
