/** The models in a Web Worker, so that the page stays responsive. The page sends their files, then questions. */

import { Model, Reading, generate, lambdaInit, readSafetensors, rms, softmax } from "./model.js";
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

  /** Read a text of at most `most` tokens: its tokens, all maps, sizes on the way, and what may come next. */
  read({ folder, text, most, lambdas }) {
    const all = tokenizer.encode(text), ids = all.slice(0, most), model = models[folder];
    const reading = new Reading(model, lambdas), maps = { first: [], second: [], map: [] }, sizes = [];
    let x;
    ids.forEach((id, query) => {
      sizes.push(model.layers.map(() => ({})));
      x = reading.next(id, (name, layer, y) => {
        if (maps[name]) y.forEach((row, head) => (((maps[name][layer] ??= [])[head] ??= [])[query] = row));
        else sizes[query][layer][name] = Array.isArray(y) ? y.map(rms) : rms(y);
      });
    });
    return { ids, labels: ids.map((id) => tokenizer.label(id)), left: all.length - ids.length, ...maps, sizes,
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
