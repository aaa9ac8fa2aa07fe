// Makes pieces away from the page: files of the model → codes → blocks of samples.
import * as ort from "./ort/ort.wasm.min.mjs";
import { Decoder } from "./decoding.js";
import { Level, Line } from "./sampling.js";

const FORMAT = "audiovq-generator-1", LONGEST = 3, AHEAD = 30; // seconds: of a block; of codes before what is decoded
const MEGABYTE = 1e6, RUNTIME = "ort/ort-wasm-simd-threaded.wasm.gz";
let facts, sessions, wanted = 0, heard = 0, wake = () => {};

const load = async (name, bytes, done) => {
  const response = await fetch(name).catch(() => null);
  if (!response?.ok) throw new Error(`${name} is missing on the server. Export the page again, or copy all of its files.`);
  const parts = [], reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    done(part.value.length);
  }
  const content = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (bytes !== undefined && content.length !== bytes)
    throw new Error(`${name} is damaged: ${content.length} of ${bytes} bytes. Load the page again, or copy the file again.`);
  return content;
};

const check = async (name, content, sha256) => {
  if (!crypto.subtle) return; // browsers have it for https and localhost alone
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const text = Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (text !== sha256) throw new Error(`${name} is damaged: its checksum is another one. Load the page again, or copy the file again.`);
};

const open = async () => {
  const text = new TextDecoder().decode(await load("model/generator.json", undefined, () => {}));
  try {
    facts = JSON.parse(text);
  } catch {
    throw new Error("model/generator.json is damaged. Copy it again, or export the page again.");
  }
  if (facts.format !== FORMAT)
    throw new Error(`The model has the format ${facts.format}; this page expects ${FORMAT}. Export the page again.`);
  postMessage({ kind: "facts", facts });
  const total = Object.values(facts.files).reduce((sum, file) => sum + file.bytes, 0);
  let n = 0;
  const done = (bytes) => postMessage({ kind: "loading", share: Math.min(1, (n += bytes) / total), megabytes: total / MEGABYTE });
  const packed = new Blob([await load(RUNTIME, undefined, () => {})]).stream();
  const unpacked = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer().catch(() => null);
  if (!unpacked) throw new Error(`${RUNTIME} is damaged. Load the page again, or copy the file again.`);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: unpacked, wasmPaths: new URL("./ort/", import.meta.url).href });
  ort.env.logLevel = "error";
  sessions = {};
  for (const [name, { bytes, sha256 }] of Object.entries(facts.files)) {
    const content = await load(`model/${name}`, bytes, done);
    await check(`model/${name}`, content, sha256);
    sessions[name] = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  }
  postMessage({ kind: "ready" });
};

const run = async (name, feeds) => {
  const tensors = {};
  for (const [input, [data, shape]] of Object.entries(feeds))
    tensors[input] = new ort.Tensor(data instanceof Float32Array ? "float32" : "int64", data, shape);
  const results = await sessions[name].run(tensors), found = {};
  for (const [output, tensor] of Object.entries(results)) found[output] = tensor.data;
  return found;
};

const channel = new MessageChannel();
let resume = () => {};
channel.port1.onmessage = () => resume();
const breathe = () => new Promise((next) => { // lets messages of the page come in
  resume = next;
  channel.port2.postMessage(null);
});

/** Make a piece: post its blocks, then all its codes if it has an end. A newer order ends it. */
const make = async (order, request) => {
  const rate = facts.sample_rate, hops = facts.hop_lengths, began = performance.now();
  const nSamples = request.endless ? Infinity : request.nSamples, decoder = new Decoder(facts, run);
  const kept = request.endless ? Math.ceil((2 * (LONGEST + AHEAD) * rate + 4 * decoder.context) / hops[0]) : Infinity;
  const lines = hops.map((hop) => new Line(Math.ceil(nSamples / hop), (kept * hops[0]) / hop));
  const levels = hops.map((_, i) => new Level(facts, i, lines, request, run));
  heard = 0;
  for (const chunk of decoder.chunks(nSamples, LONGEST * rate)) {
    while (!lines.every((line, i) => line.has(Math.ceil(chunk.high / hops[i])))) {
      for (let step = 0; step < 16; step++) {
        const level = levels.findLast((each) => !each.finished && each.ready); // the finest one first
        if (!level) break;
        await level.advance();
      }
      await breathe();
      if (order !== wanted) return;
    }
    const channels = await decoder.decode(lines, chunk), seconds = (performance.now() - began) / 1000;
    postMessage({ kind: "block", order, start: chunk.start, channels, seconds }, channels.map((samples) => samples.buffer));
    await breathe();
    while (order === wanted && request.endless && chunk.end / rate > heard + AHEAD) await new Promise((next) => (wake = next));
    if (order !== wanted) return;
  }
  postMessage({ kind: "done", order, codes: lines.map((line) => line.codes) });
};

const failed = (error) => {
  const memory = error instanceof RangeError || /memory|alloc/i.test(error.message);
  postMessage({ kind: "failed", message: memory ? "This device has too little memory for the model." : error.message });
};

onmessage = ({ data }) => {
  wanted = data.order ?? wanted;
  heard = data.heard ?? heard;
  wake();
  if (data.request) make(data.order, data.request).catch(failed);
};
open().catch(failed);
