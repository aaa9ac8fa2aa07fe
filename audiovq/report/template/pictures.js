// Pictures of a sound on a canvas: waveform, spectrogram with a mel axis, strips of codes.
const ROWS = 128, SLICE = 10; // rows of a spectrogram; milliseconds of work before the page gets its turn
const DECIBELS = [-88, -22]; // of the faintest and the strongest colour, where 0 is a full-scale sine
const TICKS = [200, 500, 1000, 2000, 5000, 10000, 20000]; // Hz, that may label the frequency axis
const BLOCK = 64; // samples for which the waveform keeps the lowest and the highest
const GOLDEN_RATIO = 0.618033988749895; // gives neighbouring numbers distant colours
const PALETTES = {
  dark: [[24, 20, 32], [52, 26, 96], [122, 46, 168], [214, 78, 132], [255, 166, 102], [255, 243, 200]],
  light: [[252, 250, 255], [228, 214, 250], [178, 142, 240], [112, 58, 208], [74, 24, 132], [28, 10, 54]],
};
const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700), hertzOf = (mels) => 700 * (10 ** (mels / 2595) - 1);

const resize = (canvas, height) => {
  const scale = Math.min(devicePixelRatio, 2), box = canvas.getBoundingClientRect();
  const width = Math.max(1, Math.round(box.width * scale));
  height ??= Math.max(1, Math.round(box.height * scale));
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return canvas.getContext("2d");
};

const monoOf = (buffer) => {
  if (buffer.numberOfChannels === 1) return buffer.getChannelData(0);
  const [left, right] = [buffer.getChannelData(0), buffer.getChannelData(1)];
  return left.map((x, i) => (x + right[i]) / 2);
};

/** The lowest and highest sample of each block, and the peak of all. */
export const peaksOf = (buffer) => {
  const mono = monoOf(buffer), n = Math.ceil(mono.length / BLOCK);
  const low = new Float32Array(n), high = new Float32Array(n);
  let peak = 1e-3;
  for (let i = 0; i < mono.length; i++) {
    const block = (i / BLOCK) | 0, x = mono[i];
    if (x < low[block]) low[block] = x;
    if (x > high[block]) high[block] = x;
    if (Math.abs(x) > peak) peak = Math.abs(x);
  }
  return { low, high, peak };
};

/** The waveform from share `from` to share `to` of its time, in the canvas' text colour. */
export const drawWave = (canvas, { low, high, peak }, from = 0, to = 1) => {
  const context = resize(canvas), { width, height } = canvas, n = low.length;
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).color;
  for (let x = 0; x < width; x++) {
    const first = Math.floor(n * (from + ((to - from) * x) / width));
    const end = Math.max(first + 1, Math.floor(n * (from + ((to - from) * (x + 1)) / width)));
    let bottom = 0, top = 0;
    for (let i = first; i < end && i < n; i++) {
      if (low[i] < bottom) bottom = low[i];
      if (high[i] > top) top = high[i];
    }
    const y = (height / 2) * (1 - top / peak), tall = (height / 2) * ((top - bottom) / peak);
    context.fillRect(x, y - 0.5, 1, tall + 1);
  }
};

/** Transforms n complex numbers in place; n is a power of two. */
export const fft = (n) => {
  const cos = new Float64Array(n / 2), sin = new Float64Array(n / 2), swap = new Uint32Array(n);
  for (let i = 0; i < n / 2; i++) [cos[i], sin[i]] = [Math.cos((2 * Math.PI * i) / n), -Math.sin((2 * Math.PI * i) / n)];
  for (let i = 0; i < n; i++) swap[i] = (swap[i >> 1] >> 1) | (i & 1 ? n >> 1 : 0);
  return (re, im) => {
    for (let i = 0; i < n; i++) {
      const j = swap[i];
      if (j > i) [re[i], re[j], im[i], im[j]] = [re[j], re[i], im[j], im[i]];
    }
    for (let half = 1, step = n >> 1; half < n; half <<= 1, step >>= 1)
      for (let start = 0; start < n; start += half << 1)
        for (let k = 0; k < half; k++) {
          const a = start + k, b = a + half, c = cos[k * step], s = sin[k * step];
          const x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
          [re[b], im[b]] = [re[a] - x, im[a] - y];
          re[a] += x;
          im[a] += y;
        }
  };
};

const palette = (isDark) => {
  const stops = PALETTES[isDark ? "dark" : "light"], table = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c++) table[3 * i + c] = stops[k][c] + (place - k) * (stops[k + 1][c] - stops[k][c]);
  }
  return table;
};

const labelHertz = (element, highest) => {
  let last = -1;
  element.replaceChildren();
  for (const hertz of TICKS) {
    const height = mel(hertz) / mel(highest), tick = document.createElement("span");
    if (height > 0.94 || height - last < 0.13) continue;
    last = height;
    tick.textContent = hertz >= 1000 ? `${hertz / 1000}k` : hertz;
    tick.style.bottom = `${100 * height}%`;
    element.append(tick);
  }
};

/** Draws from left to right, with pauses for the page; a later call for the same canvas ends an earlier one. */
export const drawSpectrogram = async (canvas, buffer, [from, to], isDark, labels) => {
  const task = (canvas.task = {}), key = `${from} ${to} ${isDark} ${canvas.getBoundingClientRect().width}`;
  if (canvas.shown?.buffer === buffer && canvas.shown.key === key) return;
  const context = resize(canvas, ROWS), { width } = canvas, rate = buffer.sampleRate, mono = monoOf(buffer);
  if (canvas.shown?.buffer !== buffer) context.clearRect(0, 0, width, ROWS); // the picture of another sound
  canvas.shown = { buffer }; // a part of it
  const n = Math.max(256, 2 ** Math.round(Math.log2(rate * 0.093))), transform = fft(n), colours = palette(isDark);
  const window = Float64Array.from({ length: n }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / n));
  const edges = Array.from({ length: ROWS + 1 }, (_, row) => (hertzOf((mel(rate / 2) * row) / ROWS) / rate) * n);
  const re = new Float64Array(n), im = new Float64Array(n);
  const powers = [0, 1].map(() => new Float64Array(n / 2 + 2));
  const image = context.createImageData(2, ROWS);
  labelHertz(labels, rate / 2);
  const fill = (power, column) => {
    for (let row = 0; row < ROWS; row++) {
      const low = edges[row], high = edges[row + 1];
      let value = 0;
      if (high - low < 1) { // narrower than a bin: between the two next to it
        const place = (low + high) / 2, k = Math.floor(place);
        value = power[k] + (place - k) * (power[k + 1] - power[k]);
      } else for (let k = Math.ceil(low); k < high; k++) value = Math.max(value, power[k]);
      const decibels = 10 * Math.log10(value * (16 / (n * n)) + 1e-12);
      const share = Math.min(1, Math.max(0, (decibels - DECIBELS[0]) / (DECIBELS[1] - DECIBELS[0])));
      const colour = 3 * Math.round(255 * (isDark ? share : share ** 1.4)), pixel = 4 * ((ROWS - 1 - row) * 2 + column);
      for (let c = 0; c < 3; c++) image.data[pixel + c] = colours[colour + c];
      image.data[pixel + 3] = 255;
    }
  };
  let pause = performance.now() + SLICE;
  for (let x = 0; x < width; x += 2) { // two columns in one transform: one is real, one imaginary
    for (const [column, part] of [re, im].entries()) {
      const start = Math.round((from + ((to - from) * (x + column + 0.5)) / width) * rate) - n / 2;
      for (let i = 0; i < n; i++) part[i] = (mono[start + i] ?? 0) * window[i];
    }
    transform(re, im);
    for (let k = 0; k <= n / 2; k++) {
      const j = (n - k) % n;
      powers[0][k] = ((re[k] + re[j]) ** 2 + (im[k] - im[j]) ** 2) / 4;
      powers[1][k] = ((im[k] + im[j]) ** 2 + (re[j] - re[k]) ** 2) / 4;
    }
    powers.forEach(fill);
    context.putImageData(image, x, 0);
    if (performance.now() > pause) {
      await new Promise((next) => setTimeout(next));
      if (canvas.task !== task) return;
      pause = performance.now() + SLICE;
    }
  }
  canvas.shown = { buffer, key };
};

/** One row a level, coarse above, equal codes in equal colours; levels above `last` are faint. */
export const drawCodes = (canvas, { levels }, [from, to], last) => {
  const context = resize(canvas), { width, height } = canvas, tall = height / levels.length;
  context.clearRect(0, 0, width, height);
  levels.forEach(({ codes, seconds_per_code: cell }, row) => {
    context.globalAlpha = row <= last ? 0.75 : 0.15;
    const first = Math.max(0, Math.floor(from / cell)), end = Math.min(codes.length, Math.ceil(to / cell));
    const skip = Math.max(1, Math.floor((to - from) / cell / width));
    for (let i = first; i < end; i += skip) {
      const x = ((i * cell - from) / (to - from)) * width, next = (((i + skip) * cell - from) / (to - from)) * width;
      context.fillStyle = `hsl(${((codes[i] * GOLDEN_RATIO) % 1) * 360} 55% 58%)`;
      context.fillRect(x, row * tall, Math.max(1, next - x), tall - 1);
    }
  });
};
