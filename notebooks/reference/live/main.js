/** Starts the figures. Those that need no model come first, so that the page answers at once. */

import { blockFigure } from "./block.js";
import { Engine } from "./engine.js";
import { lambdasFigure } from "./lambdas.js";
import { needleFigure } from "./needle.js";
import { pairsFigure } from "./pairs.js";
import { resultsFigure } from "./results.js";
import { rotationFigure } from "./rotation.js";
import { sentenceFigure } from "./sentence.js";
import { trainingFigure } from "./training.js";

const figure = (name) => document.getElementById(name);
const figures = {};

/** Wait until figures are drawn. If they cannot be, say why in their place; the text of the page stays readable. */
async function drawn(names, drawing) {
  const stages = names.map((name) => figure(name).querySelector(".stage"));
  try {
    figures[names.at(-1)] = await drawing;
  } catch (error) {
    for (const stage of stages) stage.textContent = `This figure could not be made: ${error.message}`;
  }
  for (const stage of stages) stage.removeAttribute("aria-busy");
}

figures.needle = needleFigure(figure("needle"), document.getElementById("needle-tries"));
performance.mark("first figure");
figures.rotation = rotationFigure(figure("rotation"));
figures.pairs = pairsFigure(figure("pairs"));
drawn(["results"], resultsFigure(figure("results")));
drawn(["training"], trainingFigure(figure("training")));

const engine = new Engine();
figures.block = blockFigure(figure("block"));
drawn(["lambdas"], engine.about.then((about) => lambdasFigure(figure("lambdas"), about)));
drawn(["block", "sentence"], sentenceFigure(figure("sentence"), engine, figures.block.show));

export { engine, figures };
