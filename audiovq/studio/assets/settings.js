// What governs new music: labels, seed, takes, and how wild it is, from coarse to fine.
import { make } from "../player/player.js";
import { NAMES } from "./keys.js";
import { $ } from "./words.js";

const WILD = { // setting: what it says, its ends, lowest, highest, step
  temperature: ["Tame ↔ wild", 0.1, 2, 0.05],
  top_p: ["Only safe choices ↔ all", 0.05, 1, 0.01],
  top_k: ["Few choices ↔ all", 0, 10, 1], // a power of two; the highest is all
  guidance: [": a hint ↔ a rule", 0, 5, 0.1], // after what the model follows
};

const note = (midi) => `${NAMES[midi % 12]}${Math.floor(midi / 12) - 1}`;
/** The names of the levels in the player. A level of bands of frequencies has a highest note. */
export const details = ({ levels }) => levels.map(({ highest }, i) => {
  if (i === levels.length - 1) return highest ? "All" : "Full detail";
  if (highest) return `Up to ${note(highest)}`;
  if (i === 0) return "Coarse";
  return levels.length === 3 ? "Medium" : `Medium ${i}`;
});
const levelName = (i, { levels }) => {
  const n = levels.length, { highest } = levels[i];
  if (n === 1) return "The music";
  if (highest && i === 0) return `Up to ${note(highest)}`;
  if (highest) return i < n - 1 ? `${note(levels[i - 1].highest)} to ${note(highest)}` : `Above ${note(levels[i - 1].highest)}`;
  if (i === 0) return "Coarse: the composition";
  if (i === n - 1) return "Full: the finest sound";
  return n === 3 ? "Medium: the shape of the sound" : `Medium ${i}`;
};
export const capital = (words) => `${words[0].toUpperCase()}${words.slice(1)}`;
const choices = (values, any) => [make("option", { value: "" }, any), ...values.map((value) => make("option", {}, value))];
/** The value of a slider as the model takes it. */
export const settingOf = ({ dataset, value, max }) => {
  if (dataset.setting !== "top_k") return Number(value);
  return value === max ? 0 : 2 ** value;
};
export const slider = (name, level, setting) => {
  const [words, low, high, step] = WILD[name], output = make("output");
  const value = name !== "top_k" ? setting : setting ? Math.round(Math.log2(setting)) : high;
  const input = make("input", { type: "range", min: Math.min(low, value), max: Math.max(high, value), step, value,
    "aria-label": words, "data-setting": name, "data-level": level,
    oninput: () => (output.textContent = settingOf(input) || "all") });
  input.dispatchEvent(new Event("input"));
  return make("label", { title: name.replace("_", "-") }, make("span", {}, words, output), input);
};

export const fillSettings = (model) => {
  $("#make .big").after($("#settings").content);
  for (const [name, values] of Object.entries(model.labels))
    $("#labels").append(make("label", {}, `${capital(name)} `,
      make("select", { "data-label": name }, ...choices(values, "any"))));
  $("#chords-field").hidden = !model.notes;
  $("#text-field").hidden = !model.text_bytes;
  if (model.text_bytes) $("#text").maxLength = model.text_bytes;
  for (let n = 1; n <= model.limits.max_takes; n++) $("#takes-wanted").append(make("option", {}, String(n)));
  const n = model.levels.length;
  const followed = [...Object.keys(model.labels), ...(model.text_bytes ? ["description"] : []),
    ...(model.chroma || model.notes ? ["chords"] : [])];
  model.guided = followed.length > 0;
  if (model.guided) WILD.guidance[0] = capital(followed.join(", ")) + WILD.guidance[0];
  WILD.top_k[2] = Math.ceil(Math.log2(model.codebook_size));
  const names = Object.keys(WILD).filter((name) => name !== "guidance" || model.guided);
  const recommend = () => $("#sliders").replaceChildren(...model.levels.map((_, level) =>
    make("fieldset", {}, make("legend", {}, levelName(level, model)),
      ...names.map((name) => slider(name, level, model.settings[name][level])))));
  recommend();
  $("#reset").addEventListener("click", () => {
    recommend();
    keep();
  });
  const isBands = Boolean(model.levels[0].highest);
  const kept = ["nothing", ...(isBands ? [] : ["the coarse outline", "all but the finest sound"])];
  document.querySelectorAll("select[name=keep_levels]").forEach((select) => {
    const first = select.form.id === "rerender" ? 1 : 0;
    for (let k = first; k < n; k++) {
      const words = kept[k < 2 ? k : k === n - 1 ? 2 : 3] ?? `what “${details(model)[k - 1]}” plays`;
      select.append(make("option", { value: k }, words));
    }
    select.closest("label").hidden = select.options.length < 2;
  });
  if (n < 2) $("[aria-controls=rerender]").hidden = true;
};

/** A piece of fewer levels, as from a slow machine's live music, keeps at most those. */
export const limitKept = (n_levels) => document.querySelectorAll("select[name=keep_levels]").forEach((select) => {
  for (const option of select.options) option.hidden = option.disabled = option.value > n_levels;
  if (select.value > n_levels) select.selectedIndex = 0;
});

// What was set stays with its project when the page is reloaded, in the browser.
const FIELDS = "#seconds, #how :is(input, select, textarea), #changes form :is(input, select):not([name=start], [name=end])";
const keyOf = ({ id, name, form, dataset: { label, setting, level } }) => [id, label, setting, level, name && form.id, name].join(" ");
const fields = () => [...document.querySelectorAll(FIELDS)].map((field) => [keyOf(field), field]);
const values = () => Object.fromEntries(fields().map(([key, { value }]) => [key, value]));
let place = null, first, storage = null;
try { storage = localStorage; } catch { /* the browser may forbid it: then nothing is kept */ }
export const keepAt = (at, set) => storage?.setItem(at, JSON.stringify(set));
export const keptAt = (at) => JSON.parse(storage?.getItem(at) ?? null);
/** Keeps what is set; by default where it was restored from. */
export const keep = (at = place) => keepAt(`settings ${at}`, values());
export const forget = (at) => storage?.removeItem(`settings ${at}`);
/** Shows what was kept at a place, else what the page has at first; from now on it is kept there. */
export const restore = (at) => {
  place = at;
  first ??= values();
  const kept = { ...first, ...keptAt(`settings ${at}`) };
  for (const [key, field] of fields()) {
    const isGone = field.options && ![...field.options].some(({ value }) => value === kept[key]);
    field.value = (isGone ? first : kept)[key];
    field.dispatchEvent(new Event("input"));
  }
};
addEventListener("input", ({ target }) => place && target.matches(FIELDS) && keep());

/** What depends on the project: recordings whose chords can be followed. */
export const showSettings = (model, project) => {
  const recordings = model.chroma || model.notes ? project?.recordings ?? [] : [], select = $("#chroma"), before = select.value;
  $("#chroma-field").hidden = !recordings.length;
  const options = recordings.map((each) => make("option", { value: each.id }, each.name));
  select.replaceChildren(...choices([], "nothing"), ...options);
  select.value = recordings.some((each) => each.id === before) ? before : "";
};

/** The settings as a request has them. */
export const chosen = () => {
  const settings = {}, seed = $("#seed").value.trim();
  if (seed && !/^\d+$/.test(seed)) throw new Error(`The seed must be a whole number, or empty; found ${seed}.`);
  document.querySelectorAll("#sliders input").forEach((input) =>
    (settings[input.dataset.setting] ??= []).push(settingOf(input)));
  const labels = Object.fromEntries([...document.querySelectorAll("[data-label]")]
    .filter((select) => select.value).map((select) => [select.dataset.label, select.value]));
  const takes = Number($("#takes-wanted").value), chroma = $("#chroma").value || null;
  const [text, chords] = ["#text", "#chords"].map((field) => $(field).value.trim());
  return { takes, seed: seed ? Number(seed) : null, labels, text, chords, chroma, settings };
};
