/** The model in a Web Worker, so that the page stays responsive. The page sends the three files, then questions. */

import { Model, Reading, generate, lambdaInit, readSafetensors, rms, softmax } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

let model, tokenizer;

const answers = {
  load({ config, vocabulary, checkpoint }) {
    tokenizer = new Tokenizer(vocabulary);
    model = new Model(config, readSafetensors(checkpoint));
    return { lambdas: model.lambdas, starts: model.lambdas.map((_, layer) => lambdaInit(layer)),
      pairs: config.num_attention_heads / 2 };
  },

  /** Read a text of at most `most` tokens: its tokens, all maps, sizes on the way, and what may come next. */
  read({ text, most, lambdas }) {
    const all = tokenizer.encode(text), ids = all.slice(0, most);
    const reading = new Reading(model, lambdas), first = [], second = [], sizes = [];
    let x;
    ids.forEach((id, query) => {
      sizes.push(model.layers.map(() => ({})));
      x = reading.next(id, (name, layer, y) => {
        const maps = name === "first" ? first : name === "second" ? second : null;
        if (maps) y.forEach((row, pair) => (((maps[layer] ??= [])[pair] ??= [])[query] = row));
        else sizes[query][layer][name] = Array.isArray(y) ? y.map(rms) : rms(y);
      });
    });
    return { ids, labels: ids.map((id) => tokenizer.label(id)), left: all.length - ids.length, first, second, sizes,
      next: softmax(model.logits(x)) };
  },

  label: ({ ids }) => ids.map((id) => tokenizer.label(id)),

  /** Continue a text greedily. */
  write({ text, most, count, lambdas }, tell) {
    const ids = tokenizer.encode(text).slice(0, most), written = [];
    generate(model, ids, count, { lambdas, tell: (id) => { written.push(id); tell(tokenizer.decode(written)); } });
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
