/** The page's side of the worker: load a checkpoint once, then ask. */

/** Folders of models. One tokenizer serves all. */
export const BUNDLED = "model", DIFFERENTIAL = "small_models/differential", PLAIN = "small_models/plain";

async function get(path, kind) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${answer.url}: got status ${answer.status}`);
  return answer[kind]();
}

export class Engine {
  #worker = new Worker("worker.js", { type: "module" });
  #open = new Map();
  #loaded = {};
  #tokenizer;
  #number = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { number, answer, part, error } }) => {
      const { resolve, reject, tell } = this.#open.get(number);
      if (part !== undefined) return tell(part);
      this.#open.delete(number);
      if (error) reject(new Error(error));
      else resolve(answer);
    };
    this.#tokenizer = get(`${BUNDLED}/tokenizer.json`, "json").then((vocabulary) => this.#send("tokenizer", { vocabulary }));
    this.about = this.load(BUNDLED);
  }

  /** Load a model, once; what the worker says about it. After a failure the next call tries again. */
  load(folder) {
    return (this.#loaded[folder] ??= this.#load(folder).catch((error) => {
      delete this.#loaded[folder];
      throw error;
    }));
  }

  async #load(folder) {
    const [config, checkpoint] = await Promise.all([
      get(`${folder}/config.json`, "json"), get(`${folder}/model.safetensors`, "arrayBuffer"), this.#tokenizer]);
    return this.#send("load", { folder, config, checkpoint }, { transfer: [checkpoint] });
  }

  /** Ask the model of a folder to "read" or "write", or for a "label"; `tell` hears of parts of the answer before it is whole. */
  async ask(kind, question, tell = () => {}) {
    await this.load(question.folder ?? BUNDLED);
    return this.#send(kind, question, { tell });
  }

  #send(kind, question, { tell = () => {}, transfer = [] } = {}) {
    const number = this.#number++;
    return new Promise((resolve, reject) => {
      this.#open.set(number, { resolve, reject, tell });
      this.#worker.postMessage({ number, kind, ...question }, transfer);
    });
  }
}

/** Run `work` for the newest arguments only: what is asked meanwhile waits, and only the last of it is done. */
export function newest(work) {
  let waiting = null, busy = false;
  return async (...asked) => {
    waiting = asked;
    if (busy) return;
    busy = true;
    try {
      while (waiting) {
        const taken = waiting;
        waiting = null;
        await work(...taken);
      }
    } finally {
      busy = false;
    }
  };
}
