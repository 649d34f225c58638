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
window.addEventListener("load", () => window.MathJax?.startup?.promise.then(complete));
