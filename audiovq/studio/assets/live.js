// The live page: music without end, which the server makes as it is played, and everything that changes it meanwhile.
import { make, silence, tenths } from "../player/player.js";
import { drawWave } from "../player/pictures.js";
import { fillNotes, letGo, light, playKey, playMidi, sounding } from "./keys.js";
import { json } from "./server.js";
import { details, keepAt, keptAt, settingOf, slider } from "./settings.js";
import { $, $$, attempt, complain, say } from "./words.js";

const KNOBS = { temperature: 1, guidance: 2, top_p: 74, top_k: 71 }; // with their MIDI controllers
const FIRST_NOTE = 48; // the MIDI note of the first choice
const PAUSE = 80, CHORD = 15; // milliseconds between two messages to the server, and those that the fingers of a chord take
const PEAKS = 600, SAMPLES = 735; // of the picture, and those that one of them stands for
let model, context = null, node, socket = null, keptIn = "", pauses = 0, facts = null;
let received = 0, played = 0; // samples
let changes = {}, timer = 0;
const wanted = { seed: 0, labels: {} };
const IDLE = $("#live-facts").textContent;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const wave = { low: new Float32Array(PEAKS), high: new Float32Array(PEAKS), peak: 0.8 };

// ---- what changes the music: at once while it plays, else with the next start ----
const tell = (turn) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(turn));
const change = (set) => {
  const labels = { ...wanted.labels, ...set.labels };
  Object.assign(wanted, set, { labels });
  keepAt(`live ${model.hash}`, { ...wanted, notes: undefined }); // a reload restores all but held keys
  Object.assign(changes, set, set.labels ? { labels } : {});
  timer ||= setTimeout(() => {
    tell({ set: changes });
    [changes, timer] = [{}, 0];
  }, "notes" in set ? CHORD : PAUSE);
};
const turn = (input) => change({ [input.dataset.setting]: settingOf(input) });
/** Buttons that choose a value of a label, and a slider between the two that were chosen last. */
const addLabel = (name, values, kept) => {
  let pair = values.slice(0, 2), last = values[0];
  const ends = make("span"), mixed = make("output"), input = make("input", { type: "range", min: 0, max: 100 });
  const set = (value) => {
    change({ labels: { [name]: value || null } });
    const shares = typeof value === "string" ? { [value]: 1 } : value;
    buttons.forEach((each) => each.setAttribute("aria-pressed", { 0: false, 1: true }[shares[each.dataset.value] ?? 0] ?? "mixed"));
    mixed.textContent = Object.entries(shares).map(([each, share]) =>
      share === 1 ? each || "any" : `${Math.round(100 * share)} % ${each}`).join(", ");
    ends.replaceChildren(pair.join(" ↔ "), mixed);
    input.setAttribute("aria-label", `${name}: ${pair.join(" ↔ ")}`);
    input.setAttribute("aria-valuetext", mixed.textContent);
  };
  const choose = (value) => {
    if (value && !pair.includes(value)) pair = [last, value].sort((a, b) => values.indexOf(a) - values.indexOf(b));
    if (value) [last, input.value] = [value, 100 * pair.indexOf(value)];
    set(value);
  };
  const buttons = ["", ...values].map((value) =>
    make("button", { type: "button", "data-value": value, onclick: () => choose(value) }, value || "any"));
  input.addEventListener("input", () => {
    const share = input.value / 100, [low, high] = pair;
    set({ 0: low, 1: high }[share] ?? { [low]: 1 - share, [high]: share });
  });
  $("#live-labels").append(make("h2", {}, name), make("div", { class: "layers", role: "group", "aria-label": name },
    ...buttons), ...(values.length > 1 ? [make("fieldset", {}, make("label", {}, ends, input))] : []));
  const known = Object.keys(typeof kept === "string" ? { [kept]: 1 } : kept ?? {});
  if (!known.length || !known.every((each) => values.includes(each))) return set("");
  if (known.length === 1) return choose(known[0]);
  [pair, last, input.value] = [known, known[1], 100 * kept[known[1]]];
  set(kept);
};
/** The notes that sound, else the chords of the field. */
const changeNotes = () => {
  const notes = sounding(), field = $("#live-chords");
  change({ notes: notes.length ? notes : null, chords: notes.length || !field.validity.valid ? "" : field.value.trim() });
};
const newSeed = (seed) => {
  $("#live-seed").value = seed;
  change({ seed });
};
const recommend = (kept) => {
  $("#live-knobs").replaceChildren(...Object.keys(KNOBS).filter((name) => name !== "guidance" || model.guided)
    .map((name) => slider(name, 0, kept[name] ?? model.settings[name][0])));
  $$("#live-knobs input").forEach((input) => input.addEventListener("input", () => turn(input)));
  change(Object.fromEntries(Object.keys(KNOBS).map((name) => [name, kept[name] ?? null])));
};

// ---- sound ----
const bufferSeconds = () => Number($("#live-buffer").value) / 1000;
const show = () => {
  const playing = context !== null, button = $("#live-start");
  button.textContent = playing ? "Stop" : "Start";
  button.setAttribute("aria-pressed", playing);
  if (!facts) return void ($("#live-facts").textContent = playing ? "Starting …" : IDLE);
  const { controls, latency, levels, buffer } = facts, all = model.levels.length;
  const after = Math.round(1000 * (latency + buffer + (context?.outputLatency ?? 0)));
  const time = after < 1000 ? `${after} ms` : `${tenths(after / 1000)} s`;
  $("#live-facts").textContent = `Seed ${controls.seed} · a change is heard after about ${time} · `
    + `${pauses || "no"} ${pauses === 1 ? "pause" : "pauses"}`;
  const slow = $("#live-slow"), text = levels < all
    ? `This machine is too slow for full detail: it goes on with ${levels} of ${all} levels (“${details(model)[levels - 1]}”). `
      + "End other programs and start again for all of them."
    : pauses ? "The sound has paused: a larger buffer survives longer interruptions." : "";
  slow.hidden = !text;
  if (slow.textContent !== text) slow.textContent = text;
};
const receive = ({ data }) => {
  if (typeof data === "string") {
    const said = JSON.parse(data);
    if (said.controls) {
      facts = said;
      node.port.postMessage({ wanted: Math.round(said.buffer * model.sample_rate) });
      const mine = context, wait = said.latency + (received - played) / model.sample_rate + (mine.outputLatency || 0);
      setTimeout(() => context === mine && light(said.controls.chords ? said.frame : 0), 1000 * wait); // when it is heard
    }
    const problem = said.error ?? said.ended;
    if (problem) complain(problem);
    if (problem?.startsWith("chords:")) $("#live-chords").setCustomValidity(problem);
    if (said.ended) stop();
    return show();
  }
  const samples = new Float32Array(data), n = samples.length / model.channels;
  received += n;
  const block = Array.from({ length: model.channels }, (_, c) => samples.slice(c * n, (c + 1) * n));
  for (let i = 0; i < n; i += SAMPLES) {
    const part = block[0].subarray(i, i + SAMPLES);
    for (const [row, value] of [[wave.low, Math.min(...part)], [wave.high, Math.max(...part)]]) {
      row.copyWithin(0, 1);
      row[PEAKS - 1] = value;
    }
  }
  node.port.postMessage(block, block.map((each) => each.buffer));
  if (!still.matches) requestAnimationFrame(() => drawWave($("#live-wave"), wave));
};
const start = async () => {
  if (!window.isSecureContext)
    throw new Error("Browsers play live only over https, or on the machine that runs the studio.");
  silence();
  [pauses, facts, received, played] = [0, null, 0, 0];
  const mine = (context = new AudioContext({ sampleRate: model.sample_rate, latencyHint: "interactive" }));
  show();
  await mine.audioWorklet.addModule("assets/worklet.js");
  if (context !== mine) return; // stopped meanwhile
  const samples = Math.round(bufferSeconds() * model.sample_rate);
  const options = { outputChannelCount: [model.channels], processorOptions: { wanted: samples } };
  node = new AudioWorkletNode(mine, "live", options);
  const fade = new GainNode(mine);
  node.connect(fade).connect(mine.destination);
  mine.fade = fade.gain;
  node.port.onmessage = ({ data }) => {
    tell(data);
    played = data.played;
    if (data.underruns === pauses) return;
    pauses = data.underruns;
    show();
  };
  const address = new URL("api/live", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  const line = (socket = new WebSocket(address));
  line.binaryType = "arraybuffer";
  line.onopen = () => tell({ set: wanted, buffer: bufferSeconds() });
  line.onmessage = (event) => line === socket && receive(event);
  line.onclose = () => {
    if (line !== socket) return;
    complain("The studio does not answer; the music has ended.");
    stop();
  };
  $("#live-keep").disabled = false;
};
export const stop = () => {
  const old = context;
  socket?.close();
  [context, socket] = [null, null];
  if (!old) return;
  light(0);
  old.fade?.setTargetAtTime(0, old.currentTime, 0.01);
  setTimeout(() => old.close(), 100);
  show();
};
const toggle = attempt(async () => (context ? stop() : start()));

// ---- keep ----
const keep = attempt(async () => {
  const place = `api/live/keep?seconds=60&project=${keptIn}`;
  keptIn = ""; // if it was deleted, the next one gets another
  const project = await json(place, { method: "POST" });
  keptIn = project.id;
  const version = project.versions.at(-1);
  const link = make("a", { href: `#${project.id}` }, `${project.name}: ${version.title}`);
  $("#live-kept").prepend(make("li", {}, link));
  say(`Kept as a version of “${project.name}”.`);
});

// ---- keys and MIDI ----
const other = () => newSeed(Math.floor(Math.random() * 1e6));
const again = () => tell({ restart: true });
let clicked = null; // the button that has the focus because the mouse was there
$("#live").addEventListener("focusout", () => (clicked = null));
$("#live").addEventListener("click", ({ target, detail }) => (clicked = detail ? target.closest("button") : null));
addEventListener("keydown", (event) => {
  if ($("#live").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=range]), textarea, select, dialog")) return;
  const focused = event.target.closest("button, a");
  if (event.key === " " && focused && focused !== clicked) return; // reached by keys: it is pressed
  if (playKey(event)) return event.preventDefault();
  const act = { " ": toggle, k: () => $("#live-keep").click(), n: other, r: again }[event.key.toLowerCase()];
  const button = $$("#live-labels button")[Number(event.key) - 1];
  if (!act && !button) return;
  event.preventDefault();
  if (act) act();
  else button.click();
});
const listen = ({ data: [status, number, value] }) => {
  const setting = Object.keys(KNOBS).find((name) => KNOBS[name] === number);
  const input = $(`#live-knobs [data-setting=${setting}]`), button = $$("#live-labels button")[number - FIRST_NOTE];
  if (status >> 4 === 0xb && input) {
    input.value = Number(input.min) + ((input.max - input.min) * value) / 127;
    input.dispatchEvent(new Event("input"));
  } else if (model.notes && [0x8, 0x9].includes(status >> 4)) playMidi(number, status >> 4 === 0x9 && value > 0);
  else if (status >> 4 === 0x9 && value && button) button.click();
};
const useMidi = attempt(async () => {
  const midi = await navigator.requestMIDIAccess().catch(() => {
    throw new Error("This page may not use MIDI: allow it in the browser's settings for this page.");
  });
  const attach = () => midi.inputs.forEach((input) => (input.onmidimessage = listen));
  midi.onstatechange = attach;
  attach();
  const n = midi.inputs.size;
  say(n ? `Listening to ${n} MIDI ${n === 1 ? "input" : "inputs"}.` : "There is no MIDI controller yet; plug one in.");
});

export const fillLive = (found) => {
  model = found;
  const kept = keptAt(`live ${model.hash}`) ?? {};
  for (const [name, values] of Object.entries(model.labels)) addLabel(name, values, kept.labels?.[name]);
  $("#live-numbers").hidden = !$("#live-labels button");
  if (model.notes) fillNotes(changeNotes);
  recommend(kept);
  newSeed(kept.seed ?? 0);
  if (model.notes && kept.chords) change({ chords: $("#live-chords").value = kept.chords });
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("#live-start", "click", toggle);
  on("#live-keep", "click", keep);
  on("#live-new", "click", other);
  on("#live-again", "click", again);
  on("#live-reset", "click", () => recommend({}));
  on("#live-midi", "click", useMidi);
  $("#live-midi").hidden = !navigator.requestMIDIAccess;
  on("#live-seed", "change", attempt(() => {
    const seed = Number($("#live-seed").value);
    if (!Number.isSafeInteger(seed) || seed < 0) throw new Error("The seed must be a whole number from 0 on.");
    newSeed(seed);
  }));
  on("#live-chords", "change", attempt(() => {
    $("#live-chords").setCustomValidity("");
    letGo(); // for the chords to be heard
  }));
  on("#live-buffer", "change", () => tell({ buffer: bufferSeconds() }));
  document.addEventListener("themechange", () => drawWave($("#live-wave"), wave));
};
