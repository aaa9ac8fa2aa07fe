// Plays blocks as they arrive; an empty buffer is a pause until it is full again.
const REPORT = 1024; // samples between two reports

registerProcessor("live", class extends AudioWorkletProcessor {
  constructor({ processorOptions: { wanted } }) {
    super();
    Object.assign(this, { wanted, blocks: [], at: 0, ready: 0, played: 0, told: -1, underruns: 0, filling: true });
    this.port.onmessage = ({ data }) => {
      if (data.wanted) return (this.wanted = data.wanted);
      this.blocks.push(data);
      this.ready += data[0].length;
    };
  }

  process(_, [out]) {
    if (this.ready >= this.wanted) this.filling = false;
    for (let i = 0; !this.filling && i < out[0].length;) {
      const block = this.blocks[0];
      if (!block) {
        this.filling = true;
        this.underruns++;
        break;
      }
      const n = Math.min(out[0].length - i, block[0].length - this.at);
      out.forEach((channel, c) => channel.set(block[Math.min(c, block.length - 1)].subarray(this.at, this.at + n), i));
      this.at += n;
      i += n;
      this.played += n;
      this.ready -= n;
      if (this.at === block[0].length) [this.at] = [0, this.blocks.shift()];
    }
    if (this.played - this.told >= REPORT || this.filling !== this.wasFilling) {
      this.told = this.played;
      this.wasFilling = this.filling;
      this.port.postMessage({ played: this.played, underruns: this.underruns });
    }
    return true;
  }
});
