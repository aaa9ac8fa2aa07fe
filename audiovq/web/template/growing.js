// A sound that is played while it still grows.
import { Transport, silence } from "./player.js";

const LATE = 0.05, SHIFT = 0.5; // seconds before a late block sounds; share of a full buffer that is dropped

export class GrowingTransport extends Transport {
  constructor(changed) {
    super(changed);
    Object.assign(this, { known: 0, growing: false, sources: [] });
  }
  /** A new, empty sound in `buffer`. Without end, the buffer keeps the last part of it. */
  begin(endless) {
    Object.assign(this, { growing: true, endless, filled: 0, known: 0, dropped: 0, at: 0 });
  }
  end() {
    const at = this.position, playing = this.source;
    this.release();
    this.growing = false;
    this.at = at;
    this.onlyKnown();
    if (playing) this.play(at);
  }
  /** Cut what was never made off the buffer. */
  onlyKnown() {
    const { buffer, filled } = this;
    if (!filled || filled === buffer.length) return;
    const cut = new AudioBuffer({ length: filled, numberOfChannels: buffer.numberOfChannels, sampleRate: buffer.sampleRate });
    for (let i = 0; i < cut.numberOfChannels; i++) cut.copyToChannel(buffer.getChannelData(i).subarray(0, filled), i);
    this.buffers = [cut];
  }
  append(channels) {
    const { buffer } = this, rate = buffer.sampleRate, n = channels[0].length;
    if (this.endless && this.filled + n > buffer.length) {
      const moved = Math.min(this.filled, Math.max(n, Math.floor(SHIFT * buffer.length)));
      for (let i = 0; i < channels.length; i++) {
        const samples = buffer.getChannelData(i);
        samples.copyWithin(0, moved, this.filled);
        samples.fill(0, this.filled - moved);
      }
      this.filled -= moved;
      this.at -= moved / rate;
      this.dropped += moved / rate;
    }
    channels.forEach((samples, i) => buffer.copyToChannel(samples, i, this.filled));
    const from = this.filled / rate;
    this.filled += n;
    this.known = this.filled / rate;
    if (this.source) this.schedule(from, this.known);
  }
  get position() {
    if (!this.growing) return super.position;
    if (!this.source) return Math.max(0, this.at);
    return Math.max(0, Math.min(this.known, this.at + Math.max(0, this.context.currentTime - this.began)));
  }
  play(at = this.position) {
    if (!this.growing) return super.play(at);
    silence();
    super.play(at); // becomes the sound of the page, in its context
    const { gain, source } = this.source;
    source.onended = null;
    source.stop();
    Object.assign(this, { source: { source: { stop: (when) => this.sources.forEach((each) => each.stop(when)) }, gain }, sources: [] });
    Object.assign(this, { began: this.context.currentTime, at: Math.min(at, this.known) });
    if (this.known > this.at) this.schedule(this.at, this.known);
    this.changed();
  }
  /** Let a known part sound when its time comes; if it comes too late, all that follows waits. */
  schedule(from, to) {
    const { context, buffer } = this, rate = buffer.sampleRate, first = Math.round(from * rate), n = Math.round(to * rate) - first;
    const part = new AudioBuffer({ length: n, numberOfChannels: buffer.numberOfChannels, sampleRate: rate });
    for (let i = 0; i < part.numberOfChannels; i++) part.copyToChannel(buffer.getChannelData(i).subarray(first, first + n), i);
    const wanted = this.began + (from - this.at), time = Math.max(wanted, context.currentTime + (wanted < context.currentTime ? LATE : 0));
    this.began += time - wanted;
    const source = context.createBufferSource();
    source.buffer = part;
    source.connect(this.source.gain);
    source.start(time);
    source.onended = () => (this.sources = this.sources.filter((each) => each !== source));
    this.sources.push(source);
  }
}
