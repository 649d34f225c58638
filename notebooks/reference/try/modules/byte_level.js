/** Byte-level BPE (GPT-2's), as tokenizer.json describes it: text in, ids out, and back. */

/** How GPT-2 cuts a text before it looks for pairs to merge. JavaScript's own \s has other members than Unicode's. */
const SPACE = "\\p{White_Space}";
const WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`, "gu");

/** Each byte as one visible character: itself if it is one, else a character from 256 on. */
const BYTE_TO_CHARACTER = (() => {
  const visible = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173 && byte < 256);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : next++));
})();
const CHARACTER_TO_BYTE = new Map(BYTE_TO_CHARACTER.map((character, byte) => [character, byte]));

const utf8 = new TextEncoder();

export class Tokenizer {
  /** `file` is the content of tokenizer.json. */
  constructor(file) {
    this.vocabulary = new Map(Object.entries(file.model.vocab));
    this.tokens = [];
    for (const [token, id] of this.vocabulary) this.tokens[id] = token;
    this.ranks = new Map(file.model.merges.map((pair, rank) => [pair.join(" "), rank]));
    this.special = new Map(file.added_tokens.map(({ content, id }) => [content, id]));
    this.specialIds = new Set(this.special.values());
    this.atSpecial = new RegExp(`(${[...this.special.keys()].map((s) => s.replace(/[^\w]/g, "\\$&")).join("|") || "(?!)"})`);
    this.prefix = (file.post_processor?.single ?? []) // what stands before a text: the mark of its beginning
      .flatMap((part) => (part.SpecialToken ? file.post_processor.special_tokens[part.SpecialToken.id].ids : []));
    this.known = new Map(); // words met before
  }

  encode(text) {
    return [...this.prefix, ...text.split(this.atSpecial).flatMap((part) =>
      this.special.has(part) ? [this.special.get(part)] : this.words(part).flatMap(([, ids]) => ids))];
  }

  /** The words of a text that has no special tokens in it, each with its ids. */
  words(text) {
    return (text.match(WORDS) ?? []).map((word) => [word, this.word(word)]);
  }

  /** The ids of one word: its bytes, of which the pair that was learned first is merged, again and again. */
  word(word) {
    if (!this.known.has(word)) {
      let parts = Array.from(utf8.encode(word), (byte) => BYTE_TO_CHARACTER[byte]);
      for (;;) {
        const ranks = parts.slice(1).map((part, i) => this.ranks.get(`${parts[i]} ${part}`) ?? Infinity);
        const lowest = ranks.reduce((a, b) => Math.min(a, b), Infinity);
        if (lowest === Infinity) break;
        const merged = [];
        for (let i = 0; i < parts.length; i++)
          merged.push(ranks[i] === lowest ? parts[i] + parts[++i] : parts[i]);
        parts = merged;
      }
      this.known.set(word, parts.map((part) => this.vocabulary.get(part)));
    }
    return this.known.get(word);
  }

  bytes(id) {
    return this.specialIds.has(id) ? utf8.encode(this.tokens[id])
      : Uint8Array.from(this.tokens[id], (character) => CHARACTER_TO_BYTE.get(character));
  }

  /** The text of ids, without special tokens. Bytes that are no UTF-8 become U+FFFD. */
  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
      Uint8Array.from(ids.filter((id) => !this.specialIds.has(id)).flatMap((id) => [...this.bytes(id)])));
  }

  /** One token with all of it visible: a space as ·, a line break as ↵, half of a character as \xe3\x81. */
  label(id) {
    const bytes = this.bytes(id), strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    let text = "";
    for (let i = 0; i < bytes.length;) {
      const size = [1, 2, 3, 4].find((n) => { try { return strict.decode(bytes.subarray(i, i + n)); } catch { return false; } });
      text += size ? visible(strict.decode(bytes.subarray(i, i + size))) : `\\x${hex(bytes[i], 2)}`;
      i += size ?? 1;
    }
    return text;
  }
}

const SIGNS = { " ": "·", "\n": "↵", "\t": "⇥" };
const hex = (number, digits) => number.toString(16).padStart(digits, "0");

function visible(character) {
  if (SIGNS[character]) return SIGNS[character];
  if (character === "\r") return "\\r";
  if (!/[\p{C}\p{Z}]/u.test(character)) return character;
  const point = character.codePointAt(0);
  return point < 256 ? `\\x${hex(point, 2)}` : point < 65536 ? `\\u${hex(point, 4)}` : `\\U${hex(point, 8)}`;
}
