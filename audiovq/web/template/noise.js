// Counter-based Gumbel noise, the same numbers as in Python: a function of (seed, item, level, position).
// Philox 4x64-10 (Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3"); a 64-bit word is two 32-bit numbers.
const M0H = 0xd2e7470e, M0L = 0xe14c6c93, M1H = 0xca5a8263, M1L = 0x95121157; // multipliers, high and low
const W0H = 0x9e3779b9, W0L = 0x7f4a7c15, W1H = 0xbb67ae85, W1L = 0x84caa73b; // what is added to the key each round
const ROUNDS = 10, TWO_32 = 2 ** 32;

// The product of the last call, in variables because arrays would take most of the time.
let high = 0, p3 = 0, p2 = 0, p1 = 0, p0 = 0;

/** The product of two 32-bit numbers: returns its low half and leaves the other one in `high`. */
const multiply32 = (a, b) => {
  const a1 = a >>> 16, a0 = a & 0xffff, b1 = b >>> 16, b0 = b & 0xffff;
  const middle = a1 * b0 + ((a0 * b0) >>> 16), cross = a0 * b1 + (middle & 0xffff);
  high = a1 * b1 + (middle >>> 16) + (cross >>> 16);
  return Math.imul(a, b) >>> 0;
};

/** The product of two 64-bit words, in p3 (highest) to p0. */
const multiply64 = (ah, al, bh, bl) => {
  p0 = multiply32(al, bl);
  let sum = high + multiply32(ah, bl);
  const first = high;
  sum += multiply32(al, bh);
  p1 = sum >>> 0;
  sum = Math.floor(sum / TWO_32) + first + high;
  sum += multiply32(ah, bh);
  p2 = sum >>> 0;
  p3 = (high + Math.floor(sum / TWO_32)) >>> 0;
};

/** Four 64-bit words of a counter value, into `words`: high and low half of each. */
const philox = (words, counter, seedHigh, seedLow, tagHigh, tagLow) => {
  let h0 = Math.floor(counter / TWO_32), l0 = counter >>> 0, h1 = 0, l1 = 0, h2 = 0, l2 = 0, h3 = 0, l3 = 0;
  for (let round = 0; round < ROUNDS; round++) {
    multiply64(h0, l0, M0H, M0L);
    const a = p3, b = p2, c = p1, d = p0;
    multiply64(h2, l2, M1H, M1L);
    h0 = (p3 ^ h1 ^ seedHigh) >>> 0;
    l0 = (p2 ^ l1 ^ seedLow) >>> 0;
    h1 = p1;
    l1 = p0;
    h2 = (a ^ h3 ^ tagHigh) >>> 0;
    l2 = (b ^ l3 ^ tagLow) >>> 0;
    h3 = c;
    l3 = d;
    seedHigh = (seedHigh + W0H + (seedLow + W0L >= TWO_32 ? 1 : 0)) >>> 0;
    seedLow = (seedLow + W0L) >>> 0;
    tagHigh = (tagHigh + W1H + (tagLow + W1L >= TWO_32 ? 1 : 0)) >>> 0;
    tagLow = (tagLow + W1L) >>> 0;
  }
  words[0] = h0; words[1] = l0; words[2] = h1; words[3] = l1;
  words[4] = h2; words[5] = l2; words[6] = h3; words[7] = l3;
};

/** Standard Gumbel noise of one position, a function of the code. Seeds up to 2^53 - 1, as JavaScript has whole numbers. */
export const gumbelNoise = (seed, item, level, position, size) => {
  const blocks = Math.ceil(size / 4), tag = item * 256 + level;
  const key = [Math.floor(seed / TWO_32), seed >>> 0, Math.floor(tag / TWO_32), tag >>> 0];
  const words = new Float64Array(8);
  let present = -1; // the block in `words`
  return (code) => {
    const block = code >> 2, i = 2 * (code & 3);
    if (block !== present) philox(words, position * blocks + (present = block) + 1, ...key); // NumPy counts before it draws
    const uniform = (words[i] * 2 ** 20 + Math.floor(words[i + 1] / 4096) + 0.5) * 2 ** -52;
    return Math.fround(-Math.log(-Math.log(uniform)));
  };
};
