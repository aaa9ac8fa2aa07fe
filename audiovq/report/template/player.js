// The player of the listening report and of the studio: waveform, spectrogram, layers, loop, zoom, a marked stretch.
import { drawCodes, drawSpectrogram, drawWave, peaksOf } from "./pictures.js";

export const make = (name, attributes = {}, ...content) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean" && !key.startsWith("aria-")) element[key] = value;
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...content);
  return element;
};
export const tenths = (seconds) => (Math.round(seconds * 10) / 10).toFixed(1);
export const clock = (seconds) => {
  const rounded = Math.round(seconds * 10) / 10;
  const rest = (rounded % 60).toFixed(1).replace(/\.0$/, "");
  return `${Math.floor(rounded / 60)}:${rest.padStart(rest.includes(".") ? 4 : 2, "0")}`;
};

// ---- light and dark: what the system says, until the button is pressed; remembered where the browser allows it ----
const system = matchMedia("(prefers-color-scheme: dark)");
export const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
};
export const themeButton = (button) => {
  const changed = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    document.dispatchEvent(new Event("themechange"));
  };
  try {
    const kept = localStorage.getItem("audiovq-theme");
    if (kept) document.documentElement.dataset.theme = kept;
  } catch { /* a page from disk may have no storage */ }
  button.addEventListener("click", () => {
    const theme = (document.documentElement.dataset.theme = isDark() ? "light" : "dark");
    try { localStorage.setItem("audiovq-theme", theme); } catch { /* as above */ }
    changed();
  });
  system.addEventListener("change", changed);
  button.hidden = false;
  changed();
};

// ---- sound ----
const contexts = new Map(); // sample rate → AudioContext: the browser then resamples well
const contextAt = (rate) => contexts.get(rate) ?? contexts.set(rate, new AudioContext({ sampleRate: rate })).get(rate);
let sounding = null; // one sounds at a time
export const silence = () => sounding?.pause();

/** The samples of an audio file, at its own rate if it is WAV or FLAC, else at `rate`. */
export const decode = (bytes, rate) => {
  const view = new DataView(bytes), kind = bytes.byteLength > 44 ? view.getUint32(0) : 0;
  if (kind === 0x52494646) rate = view.getUint32(24, true);
  else if (kind === 0x664c6143) rate = view.getUint32(18) >>> 12;
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
};

/** Plays one of several equally long sounds; switching between them keeps the place and has no gap. */
export class Transport {
  constructor(changed = () => {}) {
    Object.assign(this, { buffers: [], layer: 0, at: 0, loop: null, source: null, changed });
  }
  get buffer() { return this.buffers[this.layer]; }
  get seconds() { return this.buffer?.duration ?? 0; }
  get position() {
    if (!this.source) return Math.min(this.at, this.seconds);
    const place = this.at + Math.max(0, this.context.currentTime - this.began);
    if (!this.loop || place < this.loop[1]) return Math.min(place, this.seconds);
    const [start, end] = this.loop;
    return start + ((place - start) % (end - start));
  }
  play(at = this.position) {
    if (!this.buffer) return;
    if (sounding && sounding !== this) sounding.pause();
    sounding = this;
    this.release();
    if (this.loop && (at < this.loop[0] || at >= this.loop[1])) at = this.loop[0];
    else if (at >= this.seconds - 0.01) at = 0;
    const context = contextAt(this.buffer.sampleRate), source = context.createBufferSource();
    const gain = context.createGain(), now = context.currentTime;
    gain.gain.setValueAtTime(0, now);
    gain.gain.linearRampToValueAtTime(1, now + 0.008);
    source.buffer = this.buffer;
    source.connect(gain).connect(context.destination);
    if (this.loop) [source.loop, source.loopStart, source.loopEnd] = [true, ...this.loop];
    source.start(now, at);
    source.onended = () => {
      if (this.source?.source === source) [this.source, this.at] = [null, 0];
      this.changed();
    };
    Object.assign(this, { source: { source, gain }, context, began: now, at });
    context.resume();
    this.changed();
  }
  release() {
    if (!this.source) return;
    const { source, gain } = this.source, now = this.context.currentTime;
    this.at = this.position;
    this.source = null;
    gain.gain.cancelScheduledValues(now);
    gain.gain.setValueAtTime(1, now);
    gain.gain.linearRampToValueAtTime(0, now + 0.008);
    source.stop(now + 0.01);
  }
  pause() {
    this.release();
    this.changed();
  }
  seek(at) {
    const playing = this.source;
    this.release();
    this.at = Math.min(Math.max(at, 0), this.seconds);
    if (playing) this.play(this.at);
    else this.changed();
  }
  select(layer) {
    if (layer === this.layer) return;
    const at = this.position, playing = this.source;
    this.release();
    this.layer = layer;
    if (playing) this.play(at);
    else this.changed();
  }
  setLoop(loop) {
    const playing = this.source, at = this.position;
    this.release();
    this.loop = loop;
    if (playing) this.play(at);
  }
}

const EDGE = 14, SHORTEST_MARK = 0.05; // pixels around an end of the mark that take hold of it; seconds
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const button = (label, text, onclick, more = {}) =>
  make("button", { type: "button", "aria-label": label, title: label, onclick, ...more }, text);

export class Player {
  /**
   * @param host the element that the player fills
   * @param options.label what the sound is called in the labels of controls
   * @param options.marked called with the marked stretch [start, end] in seconds, or null
   * @param options.begin returns where playing begins, if elsewhere than at the playhead
   */
  constructor(host, { label, marked = () => {}, begin = () => undefined }) {
    Object.assign(this, { host, label, marked, begin, mark: null, view: [0, 1], looping: false, pictures: [] });
    this.transport = new Transport(() => this.update());
    host.player = this;
    this.build();
    new ResizeObserver(() => this.draw()).observe(this.stage);
    document.addEventListener("themechange", () => this.draw());
  }

  build() {
    const canvas = (kind) => make("canvas", { class: kind, "aria-hidden": "true" });
    this.wave = canvas("wave");
    this.played = canvas("wave played");
    this.spectrum = canvas("spectrum");
    this.codes = canvas("codes");
    this.hertz = make("div", { class: "hertz", "aria-hidden": "true" });
    this.ruler = make("div", { class: "ruler", "aria-hidden": "true" });
    this.markBox = make("div", { class: "mark", hidden: true });
    this.head = make("div", { class: "playhead" });
    this.stage = make("div", { class: "stage", tabindex: 0, role: "slider", "aria-valuemin": 0,
      "aria-label": `Position in ${this.label}`, "aria-keyshortcuts": "Space I O L + -",
      onkeydown: (event) => this.key(event) },
    make("div", { class: "waves" }, this.wave, this.played),
    make("div", { class: "spectrogram" }, this.spectrum, this.hertz), this.codes, this.markBox, this.head);
    this.layers = make("div", { class: "layers", role: "group", "aria-label": "Detail", hidden: true });
    this.playButton = button(`Play ${this.label}`, "", () => this.toggle(), { class: "play" });
    this.now = make("span", { class: "now" }, "0:00");
    this.whole = make("span");
    this.loopButton = button("Loop", "⟲", () => this.setLooping(!this.looping), { "aria-pressed": "false" });
    this.scroll = make("input", { type: "range", min: 0, step: "any", "aria-label": "Part that is shown", hidden: true,
      oninput: () => this.look(Number(this.scroll.value), this.view[1] - this.view[0]) });
    this.markText = make("span", { class: "mark-text", role: "status" });
    this.unmark = button("Remove the mark", "✕", () => this.setMark(null), { hidden: true });
    this.slot = make("span", { class: "slot" });
    this.controls = make("div", { class: "controls" }, this.playButton,
      make("span", { class: "time" }, this.now, " / ", this.whole), this.loopButton,
      button("Zoom out", "−", () => this.zoom(2)), button("Zoom in", "+", () => this.zoom(0.5)),
      this.markText, this.unmark, this.slot);
    this.host.append(this.layers, this.stage, this.ruler, this.scroll, this.controls);
    this.stage.addEventListener("pointerdown", (event) => this.press(event));
    this.stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.secondsAt(event));
    }, { passive: false });
  }

  /**
   * Show equally long sounds, the last one first. With `keep`, a sound that was playing goes on at its place.
   * A sound that is null is loaded by `load` (its number → promise of its samples) when it is chosen.
   */
  show(buffers, { names = [], codes = null, keep = false, load = null } = {}) {
    const { transport } = this, playing = keep && transport.source, at = keep ? transport.position : 0;
    const sameLength = Math.abs((buffers.at(-1)?.duration ?? 0) - transport.seconds) < 0.05;
    transport.release();
    Object.assign(transport, { buffers, layer: buffers.length - 1, at });
    this.codeLevels = codes;
    Object.assign(this, { peaks: [], load });
    this.layers.hidden = buffers.length < 2;
    this.layers.replaceChildren(...buffers.map((_, i) =>
      make("button", { type: "button", onclick: () => this.select(i) }, names[i] ?? String(i + 1))));
    if (!keep || !sameLength) this.view = [0, transport.seconds];
    if (!keep || !sameLength) this.setMark(null);
    if (playing) transport.play(at);
    this.draw();
    this.update();
  }
  async select(layer) {
    const { buffers } = this.transport;
    buffers[layer] ??= await this.load(layer);
    if (!buffers[layer] || buffers !== this.transport.buffers) return; // not loaded, or another piece is shown by now
    this.transport.select(layer);
    this.draw();
    this.update();
  }
  toggle() {
    if (this.transport.source) this.transport.pause();
    else this.transport.play(this.begin() ?? undefined);
  }
  setLooping(looping) {
    this.looping = looping;
    this.loopButton.setAttribute("aria-pressed", looping);
    this.transport.setLoop(looping ? this.mark ?? [0, this.transport.seconds] : null);
  }
  setMark(mark, quiet = false) {
    if (mark) {
      const [start, end] = mark.map((at) => Math.min(Math.max(at, 0), this.transport.seconds)).sort((a, b) => a - b);
      mark = end - start < SHORTEST_MARK ? null : [start, end];
    }
    this.mark = mark;
    if (this.looping) this.setLooping(true);
    this.unmark.hidden = !mark;
    this.markText.textContent = mark ? `${tenths(mark[0])} – ${tenths(mark[1])} s marked` : "";
    this.update();
    if (!quiet) this.marked(mark);
  }

  // ---- what is shown ----
  zoom(factor, around = this.transport.position) {
    const [from, to] = this.view, width = Math.min((to - from) * factor, this.transport.seconds);
    const share = around >= from && around <= to ? (around - from) / (to - from) : 0.5;
    const centre = around >= from && around <= to ? around : (from + to) / 2;
    this.look(centre - share * width, Math.max(width, 0.2));
  }
  look(from, width) {
    const start = Math.min(Math.max(from, 0), Math.max(0, this.transport.seconds - width));
    this.view = [start, Math.min(start + width, this.transport.seconds)];
    this.draw();
    this.update();
  }
  draw() {
    const { buffer, layer, seconds } = this.transport, { width } = this.stage.getBoundingClientRect();
    if (!buffer || !width) return;
    const peaks = (this.peaks[layer] ??= peaksOf(buffer)), [from, to] = this.view;
    for (const canvas of [this.wave, this.played]) drawWave(canvas, peaks, from / seconds, to / seconds);
    drawSpectrogram(this.spectrum, buffer, this.view, isDark(), this.hertz);
    this.codes.hidden = !this.codeLevels;
    if (this.codeLevels) drawCodes(this.codes, this.codeLevels, this.view, layer - (this.codeLevels.first ?? 0));
    const step = STEPS.find((each) => (each / (to - from)) * width >= 64) ?? 600;
    this.ruler.replaceChildren();
    for (let i = Math.ceil(from / step - 1e-6); i * step <= to + 1e-6; i++) {
      const share = (i * step - from) / (to - from), tick = make("span", {}, clock(i * step));
      if (step < 0.1) tick.textContent = (i * step).toFixed(2);
      tick.style.left = `${100 * share}%`;
      if ((1 - share) * width < 34) tick.className = "last";
      this.ruler.append(tick);
    }
    this.scroll.hidden = to - from > seconds - 0.01;
    this.scroll.max = seconds - (to - from);
    this.scroll.value = from;
  }
  update() {
    const { position, seconds, source, layer } = this.transport, [from, to] = this.view;
    if (source && !this.looping && to < seconds - 0.01 && (position > to || position < from))
      return this.look(position, to - from);
    const share = (at) => (at - from) / (to - from || 1);
    this.stage.style.setProperty("--at", Math.min(1, Math.max(0, share(position))));
    this.head.hidden = share(position) < 0 || share(position) > 1.0001;
    this.markBox.hidden = !this.mark || this.mark[1] < from || this.mark[0] > to;
    if (this.mark) {
      this.markBox.style.left = `${100 * Math.max(0, share(this.mark[0]))}%`;
      this.markBox.style.right = `${100 * Math.max(0, 1 - share(this.mark[1]))}%`;
    }
    this.now.textContent = clock(position);
    this.whole.textContent = clock(seconds);
    this.stage.setAttribute("aria-valuemax", seconds);
    this.stage.setAttribute("aria-valuenow", position.toFixed(2));
    this.stage.setAttribute("aria-valuetext", `${tenths(position)} of ${tenths(seconds)} seconds`);
    if (this.host.classList.contains("playing") !== Boolean(source)) {
      this.host.classList.toggle("playing", Boolean(source));
      const label = `${source ? "Pause" : "Play"} ${this.label}`;
      this.playButton.setAttribute("aria-label", label);
      this.playButton.title = label;
    }
    [...this.layers.children].forEach((each, i) => each.setAttribute("aria-pressed", i === layer));
    cancelAnimationFrame(this.frame);
    if (source) this.frame = requestAnimationFrame(() => this.update());
  }

  // ---- pointer and keys ----
  secondsAt(event) {
    const box = this.stage.getBoundingClientRect(), [from, to] = this.view;
    return from + (to - from) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }
  press(event) {
    if (event.button || !this.transport.buffer) return;
    const before = this.mark, at = this.secondsAt(event), x = event.clientX;
    const near = ((this.view[1] - this.view[0]) * EDGE) / this.stage.getBoundingClientRect().width;
    const [start, end] = before ?? [NaN, NaN];
    const fixed = Math.abs(at - start) < near ? end : Math.abs(at - end) < near ? start : at;
    let moved = false;
    const move = (next) => {
      moved ||= Math.abs(next.clientX - x) > 4;
      if (moved) this.setMark([fixed, this.secondsAt(next)], true);
    };
    const done = (next) => {
      this.stage.removeEventListener("pointermove", move);
      this.stage.removeEventListener("pointerup", done);
      this.stage.removeEventListener("pointercancel", done);
      if (next.type === "pointercancel") this.setMark(before, true); // the page scrolls
      else if (moved) this.marked(this.mark);
      else this.transport.seek(at);
    };
    this.stage.setPointerCapture(event.pointerId);
    this.stage.addEventListener("pointermove", move);
    this.stage.addEventListener("pointerup", done);
    this.stage.addEventListener("pointercancel", done);
  }
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { position, seconds } = this.transport, key = event.key;
    const step = (this.view[1] - this.view[0]) / 50, [start, end] = this.mark ?? [0, seconds];
    const to = { ArrowLeft: position - step, ArrowRight: position + step, Home: 0, End: seconds,
      PageUp: position - 10 * step, PageDown: position + 10 * step }[key];
    const acts = { " ": () => this.toggle(), i: () => this.setMark([position, end > position ? end : seconds]),
      o: () => this.setMark([start < position ? start : 0, position]), l: () => this.setLooping(!this.looping),
      "+": () => this.zoom(0.5), "-": () => this.zoom(2), Escape: () => this.setMark(null) };
    const layer = Number(key) - 1;
    if (to !== undefined && event.shiftKey) {
      this.anchor = this.mark ? this.anchor ?? this.mark[0] : position;
      this.transport.seek(to);
      this.setMark([this.anchor, this.transport.position]);
    } else if (to !== undefined) this.transport.seek(to);
    else if (acts[key]) acts[key]();
    else if (layer >= 0 && layer < this.transport.buffers.length) this.select(layer);
    else return;
    if (!event.shiftKey) this.anchor = undefined;
    event.preventDefault();
  }
}
