// Samples → a WAV file with 16 bits.
export const wavOf = (buffer, seconds) => {
  const { numberOfChannels: channels, sampleRate: rate } = buffer, n = Math.min(buffer.length, Math.round(seconds * rate));
  const bytes = new DataView(new ArrayBuffer(44 + 2 * channels * n)), text = (at, word) => [...word].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
  const data = Array.from({ length: channels }, (_, i) => buffer.getChannelData(i));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * channels * n, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true);
  bytes.setUint16(22, channels, true);
  bytes.setUint32(24, rate, true);
  bytes.setUint32(28, 2 * channels * rate, true);
  bytes.setUint16(32, 2 * channels, true);
  bytes.setUint16(34, 16, true);
  text(36, "data");
  bytes.setUint32(40, 2 * channels * n, true);
  for (let i = 0; i < n; i++)
    data.forEach((samples, c) => {
      const value = Math.max(-32768, Math.min(32767, Math.round(32768 * samples[i])));
      bytes.setInt16(44 + 2 * (i * channels + c), value, true);
    });
  return new Blob([bytes], { type: "audio/wav" });
};
