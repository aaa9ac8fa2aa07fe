// The page: form → order for the worker → sound, pictures, WAV and a link.
import { GrowingTransport } from "./growing.js";
import { Player, make, silence, themeButton } from "./player.js";
import { wavOf } from "./wav.js";

const at = (id) => document.getElementById(id), ENDLESS_SECONDS = 180, KEPT_SECONDS = 60;
export const state = { order: 0, facts: null, ready: false, codes: null, firstSound: 0, failed: "" };
const worker = new Worker("worker.js", { type: "module" });
const player = new Player(at("player"), { label: "the piece" });
const sound = (player.transport = new GrowingTransport(() => player.update()));

const say = (text) => (at("status").textContent = text);
const newSeed = () => (at("seed").value = Math.floor(Math.random() * 1e6));
const showHeat = () => (at("heat").textContent = Number(at("temperature").value).toFixed(2));
const recommended = () => state.facts.priors[0].sampling.temperature;

// ---- the form, and the link that holds what is in it ----
const showForm = () => {
  const { labels, priors, name } = state.facts;
  at("name").textContent = name;
  document.title = `New music by ${name}`;
  for (const [label, values] of Object.entries(labels)) {
    if (!values.length) continue; // the tracks of the training had none
    const options = ["any", ...values].map((value, i) => make("option", { value: i }, value));
    at("fields").append(make("label", {}, `${label[0].toUpperCase()}${label.slice(1)}`, make("select", { "data-label": label }, ...options)));
  }
  const longest = Math.max(...priors.map((prior) => prior.text_bytes));
  if (longest) at("fields").append(make("label", {}, "Text", make("input", { id: "text", maxlength: longest, autocomplete: "off" })));
  at("temperature").value = recommended();
  newSeed();
  const link = new URLSearchParams(location.hash.slice(1)), length = link.get("seconds");
  if (length > 0 && ![...at("seconds").options].some((each) => each.value === length))
    at("seconds").append(make("option", { value: length }, `${length} seconds`));
  for (const id of ["seconds", "seed", "temperature", "text"]) if (link.has(id) && at(id)) at(id).value = link.get(id);
  for (const select of document.querySelectorAll("[data-label]"))
    select.value = 1 + labels[select.dataset.label].indexOf(link.get(`label-${select.dataset.label}`));
  showHeat();
};
const linkOf = () => {
  const link = new URLSearchParams({ seconds: at("seconds").value, seed: Number(at("seed").value) });
  if (Number(at("temperature").value) !== recommended()) link.set("temperature", at("temperature").value);
  if (at("text")?.value) link.set("text", at("text").value);
  for (const select of document.querySelectorAll("[data-label]"))
    if (select.value > 0) link.set(`label-${select.dataset.label}`, select.selectedOptions[0].text);
  return `#${link}`;
};
const requestOf = () => {
  const { facts } = state, endless = at("seconds").value === "endless", heat = Number(at("temperature").value);
  const settings = facts.priors.map(({ sampling }) => (heat === recommended() ? sampling : { ...sampling, temperature: heat }));
  const labels = {};
  for (const select of document.querySelectorAll("[data-label]")) labels[select.dataset.label] = Number(select.value);
  const seconds = endless ? ENDLESS_SECONDS : Number(at("seconds").value);
  return { endless, nSamples: Math.max(1, Math.round(seconds * facts.sample_rate)), seed: Number(at("seed").value), item: 0,
    settings, labels, text: at("text")?.value ?? "" };
};

// ---- making ----
const begin = () => {
  const request = requestOf(), { sample_rate, channels } = state.facts;
  silence();
  history.replaceState(null, "", linkOf());
  Object.assign(state, { order: state.order + 1, codes: null, request, firstSound: 0, clicked: performance.now() });
  const length = request.endless ? KEPT_SECONDS * sample_rate : request.nSamples;
  const buffer = new AudioBuffer({ length, numberOfChannels: channels, sampleRate: sample_rate });
  at("piece").hidden = false;
  player.show([buffer]);
  sound.begin(request.endless);
  sound.play(0);
  worker.postMessage({ order: state.order, request });
  at("stop").hidden = false;
  at("download").disabled = true;
  at("progress").hidden = request.endless;
  at("progress").value = 0;
  at("progress").setAttribute("aria-label", "Made so far");
  say("Making …");
};
const end = (text) => {
  at("stop").hidden = at("progress").hidden = true;
  at("made").textContent = "";
  at("download").disabled = false;
  sound.end();
  draw();
  say(text);
};
let drawn = 0;
const draw = () => {
  drawn = performance.now();
  player.spectrum.shown = null;
  player.peaks = [];
  player.draw();
  player.update();
};
const block = ({ start, channels, seconds }) => {
  const made = start / state.facts.sample_rate + channels[0].length / state.facts.sample_rate;
  sound.append(channels);
  state.firstSound ||= performance.now() - state.clicked;
  const whole = state.request.nSamples / state.facts.sample_rate, speed = (made / seconds).toFixed(1);
  at("progress").value = made / whole;
  const part = state.request.endless ? "" : `of ${Math.round(whole)} `; // not read aloud: it changes too often
  at("made").textContent = `${made.toFixed(0)} ${part}s made, ${speed} × real time`;
  if (performance.now() - drawn > 1000 || start === 0) draw();
};
setInterval(() => state.request?.endless && worker.postMessage({ heard: sound.dropped + sound.position }), 1000);

worker.onmessage = ({ data }) => {
  if (data.order !== undefined && data.order !== state.order) return;
  if (data.kind === "facts") {
    state.facts = data.facts;
    showForm();
  } else if (data.kind === "loading") {
    at("progress").value = data.share;
    if (at("status").textContent !== "Loading the model …") say("Loading the model …");
    at("made").textContent = `${(data.share * data.megabytes).toFixed(0)} of ${data.megabytes.toFixed(0)} MB`;
  } else if (data.kind === "ready") {
    state.ready = true;
    at("make").disabled = false;
    at("progress").hidden = true;
    at("made").textContent = "";
    say("Ready.");
  } else if (data.kind === "block") block(data);
  else if (data.kind === "done") {
    state.codes = data.codes;
    end("Done.");
  } else if (data.kind === "failed") fail(data.message);
};
const fail = (message) => {
  state.failed = message;
  document.documentElement.dataset.problem = "yes";
  at("make").disabled = true;
  at("made").textContent = "";
  say(message);
};
worker.onerror = (event) => fail(event.message || "A file of this page is missing on the server. Copy all of its files.");

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin();
});
at("stop").addEventListener("click", () => {
  state.order++;
  worker.postMessage({ order: state.order });
  sound.pause();
  end("Stopped.");
  at("make").focus();
});
at("another").addEventListener("click", newSeed);
at("temperature").addEventListener("input", showHeat);
at("download").addEventListener("click", () => {
  const url = URL.createObjectURL(wavOf(sound.buffer, sound.known));
  make("a", { href: url, download: `music-${state.request.seed}.wav` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("The address of this page is the link.");
  }
});
themeButton(at("theme"));
