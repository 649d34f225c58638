/** The page's side of the worker: load the checkpoint once, then ask. */

const FILES = { config: "model/config.json", vocabulary: "model/tokenizer.json", checkpoint: "model/model.safetensors" };

export class Engine {
  #worker = new Worker("worker.js", { type: "module" });
  #open = new Map();
  #number = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { number, answer, part, error } }) => {
      const { resolve, reject, tell } = this.#open.get(number);
      if (part !== undefined) return tell(part);
      this.#open.delete(number);
      if (error) reject(new Error(error));
      else resolve(answer);
    };
    this.about = this.#load();
  }

  async #load() {
    const fetched = await Promise.all(Object.values(FILES).map((path) => fetch(path)));
    const failed = fetched.find(({ ok }) => !ok);
    if (failed) throw new Error(`${failed.url}: got status ${failed.status}`);
    const [config, vocabulary, checkpoint] = await Promise.all(
      fetched.map((answer, i) => (i < 2 ? answer.json() : answer.arrayBuffer())));
    return this.#send("load", { config, vocabulary, checkpoint }, { transfer: [checkpoint] });
  }

  /** Ask for "read", "write" or "label"; `tell` hears of parts of the answer before it is whole. */
  async ask(kind, question, tell = () => {}) {
    await this.about;
    return this.#send(kind, question, { tell });
  }

  #send(kind, question, { tell = () => {}, transfer = [] }) {
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
