// Codes of a piece from the exported priors, as in Python's `audiovq.sampling`: each level as soon as the coarser codes
// around it are there. `run(name, feeds)` is a pass through a network: promise of its results as typed arrays.
import { gumbelNoise } from "./noise.js";

const MASKED = -1e9, OUTSIDE = -1, FOREVER = 2 ** 40, f32 = Math.fround;
const FARTHEST = 50; // noise lies between -3.7 and 36.8: a code so far below the likeliest is never drawn
const int64 = (values) => BigInt64Array.from(values, (value) => BigInt(value));

/** One code: argmax(logits / temperature + noise(code)), of the likeliest codes that top_k and top_p leave. */
export const nextCode = (logits, noise, { temperature, top_k, top_p }) => {
  const possible = temperature === 0 ? logits : logits.map((x) => x / f32(temperature));
  let best = 0, most = -Infinity, threshold = temperature > 0 ? possible.reduce((a, b) => Math.max(a, b)) - FARTHEST : -Infinity;
  if (temperature > 0 && top_k > 0 && top_k < logits.length) threshold = Math.max(threshold, possible.toSorted().at(-top_k));
  if (temperature > 0 && top_p < 1) {
    const ordered = possible.filter((x) => x >= threshold).sort().reverse();
    const likelihoods = ordered.map((x) => Math.exp(x - ordered[0]));
    const total = f32(likelihoods.reduce((sum, x) => sum + x, 0));
    let sum = 0;
    ordered.forEach((x, i) => { // kept while the likelier codes together have less than top_p
      const share = f32(likelihoods[i] / total);
      sum += share;
      if (f32(f32(sum) - share) < f32(top_p)) threshold = x;
    });
  }
  for (let i = 0; i < possible.length; i++) {
    if (possible[i] < threshold) continue;
    const value = temperature === 0 ? possible[i] : f32(possible[i] + noise(i));
    if (value > most) [best, most] = [i, value];
  }
  if (!Number.isFinite(most)) throw new Error("The model computes numbers that are not finite. Export it again.");
  return best;
};

/** The last codes of a level, at constant memory; `n` is the piece's length in codes, Infinity without end. */
export class Line {
  constructor(n, capacity) {
    Object.assign(this, { n, count: 0, codes: new Int16Array(Math.min(n, capacity)).fill(OUTSIDE) });
  }
  put(code) { this.codes[this.count++ % this.codes.length] = code; }
  get(i) { return i < 0 || i >= this.n ? OUTSIDE : this.codes[i % this.codes.length]; }
  has(end) { return this.count >= Math.min(end, this.n); }
}

export class Level {
  /** @param request {nSamples, endless, seed, item, settings, labels: {name: number}, text} */
  constructor(facts, index, lines, request, run) {
    const prior = facts.priors[index], hops = facts.hop_lengths;
    Object.assign(this, { prior, index, run, request, line: lines[index], coarser: lines.slice(0, index) });
    this.setting = request.settings[index];
    this.size = facts.codebook_size;
    this.ratio = index ? hops[index - 1] / hops[index] : 1;
    this.strides = this.coarser.map((_, i) => hops[i] / hops[index - 1]);
    const asked = prior.labels.some((name) => request.labels[name]) || (request.text && prior.text_bytes);
    this.guided = Boolean(asked) && this.setting.guidance !== 1;
    const rows = (this.rows = this.guided ? 2 : 1), slots = prior.n_prefix + prior.window;
    const labels = prior.labels.map((name) => request.labels[name] ?? 0), heads = [rows, prior.kv_heads, slots, prior.head_dim];
    const end = request.endless ? Math.floor(request.nSamples / (2 * hops[index])) : FOREVER;
    const around = 2 * prior.context_codes + 1;
    const known = { // with guidance, the second row is without labels and text
      labels: [int64([...labels, ...(this.guided ? labels.map(() => 0) : [])]), [rows, labels.length]],
      n_samples: [int64([request.nSamples]), [1]], timing_end: [int64([end]), [1]],
      chroma: [int64(Array(rows).fill(0)), [rows]], notes: [int64(Array(rows).fill(0)), [rows]], gap_end: [int64([OUTSIDE]), [1]],
      coarser: [new BigInt64Array(rows * index * around), [rows, index, around]],
    };
    this.feeds = {
      previous: [int64(Array(rows).fill(this.size)), [rows]], position: [int64([0]), [1]],
      mask: [new Float32Array(slots).fill(MASKED).fill(0, 0, prior.n_prefix), [slots]],
    };
    for (const name of prior.inputs) this.feeds[name] = known[name];
    this.caches = Array.from({ length: prior.n_layers }, (_, i) => ["keys", "values"].map((kind) => {
      const cache = new Float32Array(heads.reduce((a, b) => a * b));
      this.feeds[`${kind}_${i}`] = [cache, heads];
      return cache;
    }));
  }
  get finished() { return this.line.count >= this.line.n; }
  /** Whether all coarser codes are there that the next code needs. */
  get ready() {
    const end = Math.floor(this.line.count / this.ratio) + this.prior.context_codes + 1;
    return this.coarser.every((line, i) => line.has(Math.ceil(end / this.strides[i])));
  }
  async advance() {
    const t = this.line.count, { prior, feeds, rows, request } = this;
    if (t === 0 && prior.prefix) await this.writePrefix();
    const slot = prior.n_prefix + (t % prior.window), { kv_heads, head_dim, window } = prior;
    feeds.position[0][0] = BigInt(t);
    if (this.index && t % this.ratio === 0) this.look(t / this.ratio);
    feeds.mask[0][slot] = MASKED; // what is there is older than the window
    const results = await this.run(prior.file, feeds), all = results.logits;
    const slots = prior.n_prefix + window, width = kv_heads * head_dim; // new: [rows, layers, 2, heads, head_dim]
    this.caches.forEach((pair, layer) => pair.forEach((cache, kind) => {
      for (let row = 0; row < rows; row++)
        for (let head = 0; head < kv_heads; head++) {
          const from = ((row * prior.n_layers + layer) * 2 + kind) * width + head * head_dim;
          cache.set(results.new.subarray(from, from + head_dim), ((row * kv_heads + head) * slots + slot) * head_dim);
        }
    }));
    feeds.mask[0][slot] = 0;
    let logits = all.subarray(0, this.size);
    if (this.guided) {
      const without = all.subarray(this.size), strength = f32(this.setting.guidance);
      logits = logits.map((x, i) => f32(without[i] + f32(strength * f32(x - without[i]))));
    }
    const noise = gumbelNoise(request.seed, request.item, this.index, t, this.size);
    const code = nextCode(logits, noise, this.setting);
    feeds.previous[0].fill(BigInt(code));
    this.line.put(code);
  }
  /** Read the coarser codes around a code of the next coarser level. */
  look(centre) {
    const { context_codes } = this.prior, around = 2 * context_codes + 1, above = Math.ceil(this.line.n / this.ratio);
    const target = this.feeds.coarser[0], n = this.index * around;
    this.coarser.forEach((line, i) => {
      for (let k = 0; k < around; k++) {
        const at = centre + k - context_codes, code = line.get(Math.floor(at / this.strides[i]));
        target[i * around + k] = BigInt(at < 0 || at >= above || code < 0 ? this.size : code);
      }
    });
    for (let row = 1; row < this.rows; row++) target.copyWithin(row * n, 0, n);
  }
  /** What all codes attend to: the text, and that there is no gap. */
  async writePrefix() {
    const { prior, rows, request } = this, { n_prefix, n_layers, kv_heads, head_dim, window } = prior, feeds = {};
    if (prior.text_bytes) {
      const text = new BigInt64Array(rows * prior.text_bytes);
      new TextEncoder().encode(request.text ?? "").subarray(0, prior.text_bytes).forEach((byte, i) => (text[i] = BigInt(byte + 1)));
      feeds.text = [text, [rows, prior.text_bytes]];
    }
    if (prior.infill_codes) feeds.right = [int64(Array(rows * prior.infill_codes).fill(OUTSIDE)), [rows, prior.infill_codes]];
    const found = (await this.run(prior.prefix, feeds)).prefix, size = n_prefix * head_dim;
    for (let i = 0; i < 2 * n_layers * rows * kv_heads; i++) { // [layers, 2, rows, heads, n_prefix, head_dim]
      const head = i % (rows * kv_heads), cache = this.caches[Math.floor(i / (2 * rows * kv_heads))][Math.floor(i / (rows * kv_heads)) % 2];
      cache.set(found.subarray(i * size, (i + 1) * size), head * (n_prefix + window) * head_dim);
    }
  }
}
