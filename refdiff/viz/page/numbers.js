"use strict";
/* The numbers of the page, without a document: this part also runs outside of a browser. */

/* Undo refdiff/viz/page/packed.py: base64 of little-endian 16-bit weights. */
function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / 65535);
}

/* A₁, A₂ and A₁ − λ A₂ of any layer and pair; −1 is the mean over all of them. A map is its lower triangle, row by row. */
class Maps {
  constructor(data) {
    this.layers = data.layers;
    this.pairs = data.pairs;
    this.size = data.tokens.length;
    this.triangle = (this.size * (this.size + 1)) / 2;
    this.paired = data.second !== null;
    this.first = unpack(data.first);
    this.second = this.paired ? unpack(data.second) : null;
    this.lambdas = data.lambdas;
    this.names = this.paired ? ["first", "second", "difference"] : ["first"];
  }

  at(query, key) {
    return (query * (query + 1)) / 2 + key;
  }

  chosen(layer, pair) {
    const all = (index, count) => (index < 0 ? [...Array(count).keys()] : [index]);
    return all(layer, this.layers).flatMap((l) => all(pair, this.pairs).map((p) => [l, p]));
  }

  lambdaOf(layer, pair, query) {
    if (!this.paired) return 0;
    const values = this.chosen(layer, pair).map(([l, p]) => this.one(l, p, query));
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  }

  one(layer, pair, query) {
    const lambda = this.lambdas[layer];
    return Array.isArray(lambda) ? lambda[pair][query] : lambda;
  }

  view(layer, pair) {
    const chosen = this.chosen(layer, pair);
    const view = Object.fromEntries(this.names.map((name) => [name, new Float64Array(this.triangle)]));
    for (const [l, p] of chosen) {
      const from = (l * this.pairs + p) * this.triangle;
      for (let query = 0, i = 0; query < this.size; query++) {
        const lambda = this.paired ? this.one(l, p, query) : 0;
        for (let key = 0; key <= query; key++, i++) {
          const a = this.first[from + i];
          view.first[i] += a / chosen.length;
          if (!this.paired) continue;
          const b = this.second[from + i];
          view.second[i] += b / chosen.length;
          view.difference[i] += (a - lambda * b) / chosen.length;
        }
      }
    }
    return view;
  }
}

/* How strongly a value is colored, from 0 to 1: the root of its share of what has full color. */
function strength(value, full) {
  return Math.sqrt(Math.min(Math.abs(value) / full, 1));
}

/* What has full color in a view: 99 of 100 weights are below it, since the first few queries can only look at few keys. */
function fullColor(view) {
  const sizes = Float64Array.from(Object.values(view).flatMap((map) => Array.from(map, Math.abs))).sort();
  return sizes[Math.floor(0.99 * (sizes.length - 1))] || 1;
}

/* The key with the largest size in one row. */
function strongest(maps, map, query) {
  let best = 0;
  for (let key = 1; key <= query; key++) {
    if (Math.abs(map[maps.at(query, key)]) > Math.abs(map[maps.at(query, best)])) best = key;
  }
  return best;
}
