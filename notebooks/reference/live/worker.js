/** The models in a Web Worker, so that the page stays responsive. The page sends their files, then questions. */

import { Model, Reading, generate, lambdaInit, readSafetensors, softmax } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

const models = {};
let tokenizer;

const answers = {
  tokenizer({ vocabulary }) {
    tokenizer = new Tokenizer(vocabulary);
  },

  load({ folder, config, checkpoint }) {
    const model = (models[folder] = new Model(config, readSafetensors(checkpoint)));
    return { lambdas: model.lambdas, starts: model.lambdas.map((_, layer) => lambdaInit(layer)),
      pairs: config.num_attention_heads / 2 };
  },

  /** Read a text of at most `most` tokens: its tokens, all maps, and what may come next. */
  read({ folder, text, most, lambdas }) {
    const all = tokenizer.encode(text), ids = all.slice(0, most), model = models[folder];
    const reading = new Reading(model, lambdas), maps = { first: [], second: [], map: [] };
    let x;
    ids.forEach((id, query) => {
      x = reading.next(id, (name, layer, y) => {
        y.forEach((row, head) => (((maps[name][layer] ??= [])[head] ??= [])[query] = row));
      });
    });
    return { ids, labels: ids.map((id) => tokenizer.label(id)), left: all.length - ids.length, ...maps,
      next: softmax(model.logits(x)) };
  },

  label: ({ ids }) => ids.map((id) => tokenizer.label(id)),

  /** Continue a text greedily. */
  write({ folder, text, most, count, lambdas }, tell) {
    const ids = tokenizer.encode(text).slice(0, most), written = [];
    generate(models[folder], ids, count, { lambdas, tell: (id) => { written.push(id); tell(tokenizer.decode(written)); } });
    return tokenizer.decode(written);
  },
};

onmessage = async ({ data: { number, kind, ...question } }) => {
  try {
    postMessage({ number, answer: answers[kind](question, (part) => postMessage({ number, part })) });
  } catch (error) {
    postMessage({ number, error: String(error) });
  }
};
