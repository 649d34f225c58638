/** Starts the figures. Those that need no model come first, so that the page answers at once. */

import { Engine } from "./engine.js";
import { lambdasFigure } from "./lambdas.js";
import { needleFigure } from "./needle.js";
import { resultsFigure } from "./results.js";
import { rotationFigure } from "./rotation.js";
import { sentenceFigure } from "./sentence.js";

const figure = (name) => document.getElementById(name);
const figures = {};

/** Wait until a figure is drawn. If it cannot be, say why in its place; the text of the page stays readable. */
async function drawn(name, drawing) {
  const stage = figure(name).querySelector(".stage");
  try {
    figures[name] = await drawing;
  } catch (error) {
    stage.textContent = `This figure could not be made: ${error.message}`;
  }
  stage.removeAttribute("aria-busy");
}

figures.needle = needleFigure(figure("needle"), document.getElementById("needle-tries"));
performance.mark("first figure");
figures.rotation = rotationFigure(figure("rotation"));
drawn("results", resultsFigure(figure("results")));

const engine = new Engine();
drawn("lambdas", engine.about.then((about) => lambdasFigure(figure("lambdas"), about)));
drawn("sentence", sentenceFigure(figure("sentence"), engine));

export { engine, figures };
