/**
 * The Differential Transformer (Ye et al. 2024, arXiv 2410.05258) in plain JavaScript: notebooks/tiny.py, written for
 * one token at a time. Causal attention never changes an earlier token, so a text keeps its keys and values and each
 * new token costs one pass of vectors through the layers. It computes in float64 from the checkpoint's float16 weights.
 *
 * A Llama, the plain-attention baseline, is the same but for what the heads do.
 *
 * Letters: T tokens, D model size, H query heads, K key/value heads, d head size. Heads i and i + H/2 are a pair.
 */

/** Read a safetensors file: 8 bytes of length, a JSON header, then the numbers. Returns {name: {shape, data}}. */
export function readSafetensors(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const tensors = {};
  delete header.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [first, last] }] of Object.entries(header)) {
    const bytes = buffer.slice(start + first, start + last);
    if (dtype !== "F16") throw new Error(`${name}: got dtype ${dtype}, expected F16`);
    const halves = new Uint16Array(bytes), data = new Float32Array(halves.length);
    for (let i = 0; i < data.length; i++) data[i] = HALF[halves[i]];
    tensors[name] = { shape, data };
  }
  return tensors;
}

/** The value of each of the 65,536 float16 bit patterns. */
const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
});

export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
export const lambdaInit = (layer) => 0.8 - 0.6 * Math.exp(-0.3 * layer); // layers count from 0

export function softmax(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const e = scores.map((z) => Math.exp(z - largest));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

export function rmsNorm(x, eps, weight = null) {
  const scale = 1 / Math.sqrt(dot(x, x) / x.length + eps);
  return x.map((number, i) => number * scale * (weight ? weight[i] : 1));
}

/** Rotate the d/2 pairs (x_i, x_{i + d/2}) of one head by position · frequency. */
export function rope(x, position, base) {
  const half = x.length / 2, turned = new Float64Array(x.length);
  for (let i = 0; i < half; i++) {
    const angle = position * base ** (-i / half), cos = Math.cos(angle), sin = Math.sin(angle);
    turned[i] = x[i] * cos - x[i + half] * sin;
    turned[i + half] = x[i + half] * cos + x[i] * sin;
  }
  return turned;
}

function matvec({ shape: [rows, columns], data }, x) {
  const y = new Float64Array(rows);
  for (let r = 0, at = 0; r < rows; r++) {
    let sum = 0;
    for (let c = 0; c < columns; c++) sum += data[at++] * x[c];
    y[r] = sum;
  }
  return y;
}

const add = (a, b) => a.map((x, i) => x + b[i]);

/** One row of a map: the weights of the tokens so far. */
const attentionRow = (q, keys) => softmax(Float64Array.from(keys, (k) => dot(q, k) / Math.sqrt(q.length)));

export class Model {
  constructor(config, tensors) {
    this.config = config;
    this.embedding = tensors["model.embed_tokens.weight"];
    this.head = tensors["lm_head.weight"] ?? this.embedding;
    this.norm = tensors["model.norm.weight"].data;
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, layer) => {
      const prefix = `model.layers.${layer}.`, p = {};
      for (const [name, tensor] of Object.entries(tensors))
        if (name.startsWith(prefix)) p[name.slice(prefix.length).replace(/^(self_attn|mlp)\.|\.weight$/g, "")] = tensor;
      return p;
    });
    this.isPlain = config.model_type === "llama";
    this.lambdas = this.isPlain ? [] : this.layers.map((p, layer) => // eq. 2
      Math.exp(dot(p.lambda_q1.data, p.lambda_k1.data)) - Math.exp(dot(p.lambda_q2.data, p.lambda_k2.data)) +
      lambdaInit(layer));
  }

  /** The row of the embedding for one token. */
  embed(id) {
    const D = this.embedding.shape[1];
    return Float64Array.from(this.embedding.data.subarray(id * D, (id + 1) * D));
  }

  logits(x) {
    return matvec(this.head, rmsNorm(x, this.config.rms_norm_eps, this.norm));
  }
}

/** A text as the model reads it, token by token, with a λ for each layer. */
export class Reading {
  constructor(model, lambdas = model.lambdas) {
    Object.assign(this, { model, lambdas, length: 0 });
    this.cache = model.layers.map(() => ({ keys: [], values: [] })); // by layer, then by token: (heads, size)
  }

  /**
   * Read one more token and return its vector after the last layer. `see(name, layer, rows)` is told of the token's row
   * of each map: "first" and "second" by pair, or of plain attention "map" by head.
   */
  next(id, see = () => {}) {
    const { layers, config: { rms_norm_eps: eps } } = this.model;
    let x = this.model.embed(id);
    layers.forEach((p, layer) => {
      x = add(x, this.attention(rmsNorm(x, eps, p.input_layernorm.data), p, layer, see)); // eq. 4
      x = add(x, swiglu(rmsNorm(x, eps, p.post_attention_layernorm.data), p)); // eq. 5
    });
    this.length += 1;
    return x;
  }

  /** Attention of the newest token to all tokens so far. */
  attention(x, p, layer, see) {
    const { head_dim: d, rope_parameters: { rope_theta: base } } = this.model.config;
    const split = (y) => Array.from({ length: y.length / d }, (_, i) => y.subarray(i * d, (i + 1) * d));
    const heads = (tensor) => split(matvec(tensor, x));
    const q = heads(p.q_proj).map((head) => rope(head, this.length, base));
    const k = heads(p.k_proj).map((head) => rope(head, this.length, base));
    const v = heads(p.v_proj);
    const { keys, values } = this.cache[layer];
    keys.push(k);
    values.push(v);

    const result = (this.model.isPlain ? this.plainHeads : this.differentialHeads).call(this, q, this.cache[layer], layer, see);
    return matvec(p.o_proj, result);
  }

  /** Plain attention: each head weighs its own values by one map. */
  plainHeads(q, { keys, values }, layer, see) {
    const d = q[0].length, shared = q.length / keys[0].length, result = new Float64Array(q.length * d);
    const maps = q.map((head, i) => attentionRow(head, keys.map((token) => token[Math.floor(i / shared)])));
    maps.forEach((row, i) => values.forEach((token, s) => {
      const value = token[Math.floor(i / shared)];
      for (let j = 0; j < d; j++) result[i * d + j] += row[s] * value[j];
    }));
    see("map", layer, maps);
    return result;
  }

  /** Differential attention: eq. 1 and 3. */
  differentialHeads(q, { keys, values }, layer, see) {
    const d = q[0].length, K = keys[0].length, pairs = q.length / 2, shared = q.length / K; // H / K query heads share a key/value head
    const first = [], second = [], differences = [];
    for (let i = 0; i < pairs; i++) {
      const key = (head) => keys.map((token) => token[Math.floor(head / shared)]);
      const a1 = attentionRow(q[i], key(i)), a2 = attentionRow(q[i + pairs], key(i + pairs));
      const out = new Float64Array(2 * d); // a pair of heads shares one value of size 2d
      values.forEach((token, s) => {
        const weight = a1[s] - this.lambdas[layer] * a2[s]; // eq. 1
        const one = token[Math.floor(i / shared)], two = token[Math.floor(i / shared) + K / 2];
        for (let j = 0; j < d; j++) { out[j] += weight * one[j]; out[d + j] += weight * two[j]; }
      });
      first.push(a1);
      second.push(a2);
      differences.push(out);
    }
    see("first", layer, first);
    see("second", layer, second);
    const result = new Float64Array(2 * d * pairs);
    const { rms_norm_eps: eps } = this.model.config;
    differences.forEach((out, i) => result.set(rmsNorm(out, eps).map((y) => (1 - lambdaInit(layer)) * y), 2 * d * i)); // eq. 3
    return result;
  }
}

function swiglu(x, p) {
  const gate = matvec(p.gate_proj, x), up = matvec(p.up_proj, x);
  return matvec(p.down_proj, gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]));
}

/** The index of the largest number; of equal ones the first, as NumPy's argmax. */
export const argmax = (x) => x.reduce((best, number, i) => (number > x[best] ? i : best), 0);

/** Continue a text with the most likely token, up to `count` times or the end of the text; `tell(id)` hears of each. */
export function generate(model, ids, count, { lambdas = model.lambdas, tell = () => {} } = {}) {
  const reading = new Reading(model, lambdas), text = [...ids];
  let x;
  for (const id of ids) x = reading.next(id);
  while (text.length < ids.length + count) {
    const id = argmax(model.logits(x));
    text.push(id);
    tell(id);
    if (id === model.config.eos_token_id) break;
    x = reading.next(id);
  }
  return text;
}
