// Codes → waveform, in chunks, with the result that the whole would give.
import { fft } from "./pictures.js";

/** Transforms n complex numbers in place, for any n: by Bluestein's convolution if n is no power of two. */
export const anyFft = (n) => {
  if ((n & (n - 1)) === 0) return fft(n);
  const size = 2 ** Math.ceil(Math.log2(2 * n)), transform = fft(size);
  const cos = new Float64Array(n), sin = new Float64Array(n), kr = new Float64Array(size), ki = new Float64Array(size);
  for (let i = 0; i < n; i++) {
    const angle = (Math.PI * ((i * i) % (2 * n))) / n;
    [cos[i], sin[i]] = [Math.cos(angle), Math.sin(angle)];
    kr[i] = kr[(size - i) % size] = cos[i];
    ki[i] = ki[(size - i) % size] = sin[i];
  }
  transform(kr, ki);
  const ar = new Float64Array(size), ai = new Float64Array(size);
  return (re, im) => {
    ar.fill(0);
    ai.fill(0);
    for (let i = 0; i < n; i++) {
      ar[i] = re[i] * cos[i] + im[i] * sin[i];
      ai[i] = im[i] * cos[i] - re[i] * sin[i];
    }
    transform(ar, ai);
    for (let i = 0; i < size; i++) // the inverse transform is the transform with both parts exchanged
      [ai[i], ar[i]] = [ar[i] * kr[i] - ai[i] * ki[i], ar[i] * ki[i] + ai[i] * kr[i]];
    transform(ar, ai);
    for (let i = 0; i < n; i++) {
      const [x, y] = [ai[i] / size, ar[i] / size];
      re[i] = x * cos[i] + y * sin[i];
      im[i] = y * cos[i] - x * sin[i];
    }
  };
};

export class Decoder {
  constructor(facts, run) {
    Object.assign(this, { run, facts: facts.decoder, hops: facts.hop_lengths, channels: facts.channels });
    this.period = this.facts.period;
    this.multiple = this.facts.multiple ?? this.hops[0]; // samples of whole patches of codes
    [this.context, this.ahead] = [this.period, this.multiple].map((n) => Math.ceil(this.facts.context / n) * n);
    if (this.facts.result === "spectra") {
      const n = this.facts.n_fft;
      this.window = Float32Array.from({ length: n }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / n));
      this.transform = anyFft(n);
    }
  }
  /** {low, start, end, high}: samples [start, end) are wanted, and the codes of [low, high) are needed. */
  *chunks(nSamples, longest) {
    let start = 0, step = this.period;
    while (start < nSamples) {
      let end = Math.min(start + step, nSamples), high = end + this.ahead;
      if (high >= nSamples) end = high = nSamples; // the rest is no longer than the context
      yield { low: Math.max(0, start - this.context), start, end, high };
      start = end;
      step = Math.max(this.period, Math.min(2 * step, Math.floor(longest / this.period) * this.period));
    }
  }
  /** The samples of a chunk: a Float32Array for each channel. */
  async decode(lines, { low, start, end, high }) {
    const feeds = {}, { multiple } = this;
    this.hops.forEach((hop, i) => {
      const n = (Math.ceil((high - low) / multiple) * multiple) / hop, first = low / hop, known = Math.ceil(high / hop);
      const codes = BigInt64Array.from({ length: n }, (_, k) => BigInt(first + k < known ? lines[i].get(first + k) : -1));
      feeds[`codes_${i}`] = [codes, [1, n]];
    });
    const results = await this.run(this.facts.file, feeds), found = results[this.facts.result];
    const length = found.length / this.channels;
    return Array.from({ length: this.channels }, (_, channel) => {
      const part = found.subarray(channel * length, (channel + 1) * length);
      const whole = this.facts.result === "spectra" ? this.waveform(part) : part;
      const tones = results.tones?.subarray(channel * whole.length); // a second part of the sound
      const wanted = whole.slice(start - low, end - low);
      return wanted.map((x, i) => Math.min(1, Math.max(-1, tones ? x + tones[start - low + i] : x)));
    });
  }
  /** Real and imaginary parts of the frames' spectra [2, frames, bins] -> samples, by overlap-add. */
  waveform(spectra) {
    const { n_fft: n, frame_hop: hop } = this.facts, bins = n / 2 + 1, frames = spectra.length / (2 * bins);
    const total = new Float32Array((frames - 1) * hop + n), envelope = new Float32Array(total.length);
    const re = new Float64Array(n), im = new Float64Array(n), { window } = this;
    for (let frame = 0; frame < frames; frame += 2) { // two frames in one transform: one is real, one imaginary
      const second = frame + 1 < frames ? frame + 1 : -1;
      for (let k = 0; k < bins; k++) {
        const inner = k > 0 && k < n / 2 ? 1 : 0; // at both ends, the imaginary part counts for nothing
        const ar = spectra[frame * bins + k], ai = inner * spectra[(frames + frame) * bins + k];
        const br = second < 0 ? 0 : spectra[second * bins + k], bi = second < 0 ? 0 : inner * spectra[(frames + second) * bins + k];
        re[k] = ar - bi;
        im[k] = ai + br;
        if (!inner) continue;
        re[n - k] = ar + bi;
        im[n - k] = br - ai;
      }
      this.transform(im, re); // with both parts exchanged it is the inverse
      for (const [at, part] of [[frame, re], [second, im]])
        for (let i = 0, place = at * hop; at >= 0 && i < n; i++, place++) {
          const weight = window[i];
          total[place] += (part[i] / n) * weight;
          envelope[place] += weight * weight;
        }
    }
    const first = (n - hop) / 2;
    return total.subarray(first, first + frames * hop).map((x, i) => x / envelope[first + i]);
  }
}
