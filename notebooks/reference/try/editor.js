/** A text area that shows Python in colors: the colored words lie behind it, and its own are transparent. */

const WORDS = new RegExp([
  "(?<comment>#.*)",
  "(?<string>[rbfRBF]{0,2}(?:\"\"\"[^]*?\"\"\"|'''[^]*?'''|\"(?:[^\"\\\\\\n]|\\\\.)*\"|'(?:[^'\\\\\\n]|\\\\.)*'))",
  "(?<keyword>\\b(?:and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|if|import|in|is|lambda|None|not|or|pass|raise|return|True|False|try|while|with|yield)\\b)",
  "(?<number>\\b\\d[\\d_]*\\.?\\d*(?:e[+-]?\\d+)?\\b)",
].join("|"), "gu");

/** The same text in spans, each with what it is as its class. */
function colored(text) {
  const made = document.createDocumentFragment();
  let last = 0;
  for (const match of text.matchAll(WORDS)) {
    const span = document.createElement("span");
    span.className = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    span.textContent = match[0];
    made.append(text.slice(last, match.index), span);
    last = match.index + match[0].length;
  }
  made.append(text.slice(last), "\n"); // a last line that is empty has a height too
  return made;
}

/** Color a text area, and indent a new line as the one before it. Tab leaves it, as everywhere on the web. */
export function edit(area, run) {
  const behind = document.createElement("pre");
  behind.setAttribute("aria-hidden", "true");
  area.before(behind);
  const draw = () => behind.replaceChildren(colored(area.value));
  area.addEventListener("input", draw);
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    if (event.shiftKey || event.ctrlKey || event.metaKey) return run();
    const line = area.value.slice(0, area.selectionStart).split("\n").at(-1);
    const indent = /^ */u.exec(line)[0] + (line.trimEnd().endsWith(":") ? "    " : "");
    document.execCommand("insertText", false, `\n${indent}`); // deprecated, and alone in keeping what Ctrl+Z goes back to
  });
  draw();
  return draw;
}
