// Makes equations that are wider than the page smaller, as far as they stay legible; then they scroll.
const LEAST = 0.65;
function roomOf(part) { // an equation within a line has the width of its paragraph
  return (part.matches("span.math") ? part.closest("p, dd, li, td, dt") ?? part.parentElement : part).clientWidth;
}
function fit() {
  for (const part of document.querySelectorAll(".math.notranslate")) {
    const drawn = part.querySelector("svg"); // beside it stands the same equation for screen readers, unseen
    part.style.fontSize = "";
    for (let size = 1; drawn && size > LEAST; part.style.fontSize = `${100 * size}%`) {
      const share = roomOf(part) / drawn.getBoundingClientRect().width;
      if (share >= 1) break;
      size = Math.max(LEAST, size * Math.min(0.98, share)); // not everything in it shrinks in proportion
    }
  }
}

// A picture opens by itself, in its full size, and there in dark ink. Some keep their width on a narrow page.
function enlarge() {
  for (const image of document.querySelectorAll("article img")) {
    const picture = image.closest("picture") ?? image;
    const frame = document.createElement("span");
    const link = document.createElement("a");
    frame.className = `picture ${image.className}`; // which of the two themes it is for
    link.href = image.src.replace(/(?<=drawn.*)-dark.svg$/, "-light.svg");
    link.title = "Open this picture in its full size";
    picture.replaceWith(frame);
    frame.append(link);
    link.append(picture);
    image.className = "";
  }
}
document.addEventListener("DOMContentLoaded", enlarge);

// What a program prints in columns keeps them; everything else that it prints wraps.
function keepColumns() {
  for (const printed of document.querySelectorAll(".cell_output pre")) {
    printed.classList.toggle("columns", /\S {2,}\S.* {2,}\S/.test(printed.textContent));
  }
}
document.addEventListener("DOMContentLoaded", keepColumns);

// What is wider than the page scrolls by itself: above it stands that it does, and the arrow keys move it.
function announce() {
  for (const part of document.querySelectorAll("article :is(pre, .math.notranslate, .table-wrapper, .picture)")) {
    const drawn = part.matches(".math") && part.querySelector("svg");
    const width = drawn ? drawn.getBoundingClientRect().width : part.scrollWidth;
    const wide = width > roomOf(part) + 1;
    let hint = part.previousElementSibling;
    if (!hint?.matches(".scroll-hint")) {
      if (!wide) continue;
      hint = document.createElement("span");
      hint.className = "scroll-hint";
      hint.textContent = part.matches(".picture") ? "scrolls sideways →, a tap opens it" : "scrolls sideways →";
      part.before(hint);
    }
    hint.hidden = !wide;
    if (wide && !part.matches(".picture")) part.tabIndex = 0;
  }
}

// What the theme leaves out for people who do not use a screen.
function complete() {
  for (const caption of document.querySelectorAll('[role="heading"]:not([aria-level])')) {
    caption.setAttribute("aria-level", "2");
  }
  for (const summary of document.querySelectorAll("details.hide > summary")) {
    summary.removeAttribute("aria-label"); // it has words of its own
  }
}
document.addEventListener("DOMContentLoaded", complete);
function arrange() {
  fit();
  announce();
}
window.addEventListener("load", () => Promise.resolve(window.MathJax?.startup?.promise).then(arrange));
window.addEventListener("resize", arrange);
document.addEventListener("toggle", arrange, true); // what was folded has no size

// Notebooks run in the page: Python comes when it is asked for. Browsers load no modules from a disk.
const CHAPTER = /notebooks\/((?:\d\d|guide)_\w*)[^/]*$/;
const NOT_THERE = { guide_array_libraries: "This guide does not run in a browser: it needs array-api-strict, as a second array library." };
const FROM_DISK = "This page also runs in your browser, but not from a disk: serve the whole site’s folder with “python -m http.server”.";
function offerToRun() {
  const [, chapter] = CHAPTER.exec(location.pathname) ?? [];
  if (!chapter) return;
  const bar = document.createElement("p");
  bar.className = "run-chapter runs";
  document.querySelector("article h1").after(bar);
  const why = NOT_THERE[chapter] ?? (location.protocol === "file:" ? FROM_DISK : null);
  if (why) {
    bar.textContent = why;
    return;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Run this page in your browser";
  button.addEventListener("click", async () => (await import("../try/chapter.js")).runChapter(bar));
  bar.append(button);
}
document.addEventListener("DOMContentLoaded", offerToRun);
