// The microphone as a WAV file that is made in the page.
import { decode } from "../player/player.js";

const RATE = 44100;

const wav = (buffer) => {
  const n = buffer.numberOfChannels, size = buffer.length * n * 2, view = new DataView(new ArrayBuffer(44 + size));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // whole numbers
  view.setUint16(22, n, true);
  view.setUint32(24, buffer.sampleRate, true);
  view.setUint32(28, buffer.sampleRate * n * 2, true);
  view.setUint16(32, n * 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  for (let channel = 0; channel < n; channel++)
    buffer.getChannelData(channel).forEach((x, i) =>
      view.setInt16(44 + (i * n + channel) * 2, Math.round(Math.max(-1, Math.min(1, x)) * 32767), true));
  return new File([view], "Recording.wav", { type: "audio/wav" });
};

/** Begin to record; returns a function that ends it and gives the file. */
export const record = async () => {
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // made for speech
  const stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  const recorder = new MediaRecorder(stream), parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.start();
  return async () => {
    const ended = new Promise((done) => recorder.addEventListener("stop", done));
    recorder.stop();
    await ended;
    stream.getTracks().forEach((track) => track.stop());
    return wav(await decode(await new Blob(parts).arrayBuffer(), RATE));
  };
};
