// Makes equations and tables that are wider than the page smaller, as far as they stay legible; then they scroll.
const LEAST = 0.48;
function fit() {
  for (const part of document.querySelectorAll(".math.notranslate, .table-wrapper")) {
    const drawn = part.querySelector("svg"); // beside it stands the same equation for screen readers, unseen
    const width = () => (drawn ? drawn.getBoundingClientRect().width : part.scrollWidth);
    const block = part.tagName === "SPAN" ? part.closest("p, dd, li, td, dt") ?? part.parentElement : part;
    let size = 1;
    part.style.fontSize = "";
    while (width() > block.clientWidth + 1 && size > LEAST) {
      size = Math.max(LEAST, size * Math.min(0.98, block.clientWidth / width()));
      part.style.fontSize = `${100 * size}%`; // not everything in it shrinks in proportion
    }
  }
}
// A picture opens by itself, in its full size: on a narrow page its words would be small.
function enlarge() {
  for (const picture of document.querySelectorAll(".cell_output img")) {
    const link = document.createElement("a");
    link.href = picture.src;
    link.title = "Open this picture in its full size";
    picture.replaceWith(link);
    link.append(picture);
  }
}
document.addEventListener("DOMContentLoaded", enlarge);

// What the theme leaves out for people who do not use a mouse or a screen.
function complete() {
  for (const caption of document.querySelectorAll('[role="heading"]:not([aria-level])')) {
    caption.setAttribute("aria-level", "2");
  }
  for (const part of document.querySelectorAll("pre, .math, .table-wrapper")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0; // it is moved by the arrow keys
  }
}
document.addEventListener("DOMContentLoaded", complete);
window.addEventListener("load", () => Promise.resolve(window.MathJax?.startup?.promise).then(fit).then(complete));
window.addEventListener("resize", fit);
