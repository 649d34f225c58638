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

/** Show in its own place why a figure is not there; the text of the page stays readable. */
const otherwise = (...names) => (error) => names.forEach((name) => {
  figure(name).querySelector(".stage").textContent = `This figure could not be made: ${error.message}`;
});

figures.needle = needleFigure(figure("needle"), document.getElementById("needle-tries"));
performance.mark("first figure");
figures.rotation = rotationFigure(figure("rotation"));
figures.pairs = pairsFigure(figure("pairs"));
resultsFigure(figure("results")).then((made) => { figures.results = made; }, otherwise("results"));
trainingFigure(figure("training")).then((made) => { figures.training = made; }, otherwise("training"));

const engine = new Engine();
figures.block = blockFigure(figure("block"));
engine.about.then((about) => lambdasFigure(figure("lambdas"), about), otherwise("lambdas"));
sentenceFigure(figure("sentence"), engine, figures.block.show).then((made) => { figures.sentence = made; }, otherwise("block", "sentence"));

export { engine, figures };
