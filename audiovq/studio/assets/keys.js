// Notes for the live page: a piano and pads of chords, played by mouse, fingers, computer keys and MIDI.
import { make } from "../player/player.js";
import { $, $$ } from "./words.js";

const FIRST = 48, OCTAVES = 2; // from C3 on, as MIDI notes
export const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const ROW = [..."AWSEDFTGYHUJ"].map((letter) => `Key${letter}`); // places on the keyboard; the next, K, keeps
const SHIFTS = ["KeyZ", "KeyX"]; // to the lower and the higher octave
const PADS = { C: [48, 52, 55], Dm: [50, 53, 57], Em: [52, 55, 59], F: [53, 57, 60], G: [55, 59, 62], Am: [57, 60, 64],
  "B♭": [58, 62, 65], E7: [52, 56, 59, 62] };
const SHORTEST = 200; // milliseconds that a touch lasts at least: music is drawn in blocks, which would miss it
const held = new Map(); // key, finger or MIDI key → its notes, and when it was pressed
const fingers = new Map(); // pointer → the button below it
let latched = [], octave = 1, letters = new Map(), changed;

export const sounding = () => [...new Set([...held.values()].flatMap(({ notes }) => notes).concat(latched))].sort((a, b) => a - b);
const isHolding = () => $("#live-hold").getAttribute("aria-pressed") === "true";
const notesOf = (button) => button.dataset.notes.split(" ").map(Number);
const show = () => {
  const notes = sounding();
  $$("#live-notes [data-notes]").forEach((button) =>
    button.setAttribute("aria-pressed", notesOf(button).every((note) => notes.includes(note))));
  changed();
};
/** Shows a chord by its frame (`data/notes.py`): its bass in the first octave, its notes in the second. */
export const light = (frame) => $$("#piano button").forEach((button, key) =>
  button.classList.toggle("sounds", key < 12 ? frame >> 12 === key + 1 : Boolean((frame >> (key - 12)) & 1)));
/** What goes on without being pressed ends. */
export const letGo = () => {
  latched = [];
  show();
};
const hold = (source, notes) => {
  clearTimeout(held.get(source)?.timer);
  const ends = !held.size && latched.join() === notes.join(); // what goes on is pressed once more
  if (!held.size) latched = [];
  if (!ends) held.set(source, { notes, since: performance.now() });
  show();
};
const release = (source) => {
  const found = held.get(source), stays = isHolding();
  const rest = found && !stays ? found.since + SHORTEST - performance.now() : 0;
  if (rest > 0) found.timer = setTimeout(release, rest, source);
  if (rest > 0 || !held.delete(source)) return;
  if (stays) latched.push(...found.notes);
  show();
};

const showLetters = () => $$("#live-notes kbd").forEach((each) => {
  const note = each.parentElement.dataset.notes, code = each.dataset.code ?? ROW[note - FIRST - 12 * octave] ?? "";
  each.textContent = letters.get(code)?.toUpperCase() ?? code.slice(3);
});
/** A key of the computer; whether it is one of the piano's. */
export const playKey = ({ code, repeat }) => {
  const at = ROW.indexOf(code), isShift = SHIFTS.includes(code);
  if (!changed || (at < 0 && !isShift)) return false;
  if (isShift) octave = SHIFTS.indexOf(code);
  else if (!repeat) hold(code, [FIRST + 12 * octave + at]);
  showLetters();
  return true;
};
/** A key of a MIDI controller. */
export const playMidi = (note, isDown) =>
  isDown && note >= FIRST ? hold(`midi ${note}`, [note]) : release(`midi ${note}`);

/** Shows the piano and the pads; `act` is called when other notes sound. */
export const fillNotes = (act) => {
  const host = $("#live-notes"), keyOf = (element) => element?.closest("#live-notes [data-notes]");
  const key = (notes, attributes, ...content) => make("button", { type: "button", "data-notes": notes, ...attributes }, ...content);
  for (let i = 0; i < OCTAVES; i++)
    $("#piano").append(make("div", { class: "octave" }, ...NAMES.map((name, at) => {
      const words = { "aria-label": `${name}${3 + i}`, class: name.length > 1 ? "black" : "", tabindex: -1 };
      const made = key(FIRST + 12 * i + at, words, ...(at ? [] : [make("small", {}, `C${3 + i}`)]), make("kbd"));
      made.style.gridColumn = `${at + 1 + (at > 4)} / span 2`; // 14 columns: white keys are two wide, black ones between them
      return made;
    })));
  $("#pads").append(...Object.entries(PADS).map(([name, notes]) => key(notes.join(" "), {}, name)));
  const point = ({ pointerId, clientX, clientY }) => { // a finger may glide from key to key
    const found = keyOf(document.elementFromPoint(clientX, clientY));
    if (!found || fingers.get(pointerId) === found) return;
    fingers.set(pointerId, found);
    hold(pointerId, notesOf(found));
  };
  host.addEventListener("pointerdown", (event) => event.button === 0 && keyOf(event.target) && point(event));
  host.addEventListener("pointermove", (event) => fingers.has(event.pointerId) && point(event));
  for (const end of ["pointerup", "pointercancel"])
    addEventListener(end, ({ pointerId }) => fingers.delete(pointerId) && release(pointerId));
  host.addEventListener("mousedown", (event) => { // the focus leaves text fields, so that the computer's keys play
    if (!keyOf(event.target)) return;
    event.preventDefault();
    document.activeElement.blur();
  });
  host.addEventListener("contextmenu", (event) => keyOf(event.target) && event.preventDefault());
  host.addEventListener("click", ({ target, detail }) => {
    if (detail || !keyOf(target)) return; // a screen reader: until it presses again, or another one
    if (held.get("click")?.notes.join(" ") === keyOf(target).dataset.notes) release("click");
    else hold("click", notesOf(keyOf(target)));
  });
  for (const kind of ["keydown", "keyup"])
    host.addEventListener(kind, (event) => {
      if (!keyOf(event.target) || ![" ", "Enter"].includes(event.key)) return;
      event.preventDefault(); // no click
      if (kind === "keydown" && !event.repeat) hold(event.code, notesOf(event.target));
    });
  addEventListener("keyup", ({ code }) => release(code));
  addEventListener("blur", () => [...held.keys()].forEach((source) => String(source).startsWith("midi") || release(source)));
  $("#live-hold").addEventListener("click", () => {
    $("#live-hold").setAttribute("aria-pressed", !isHolding());
    letGo();
  });
  [host.hidden, changed] = [false, act];
  show();
  showLetters();
  navigator.keyboard?.getLayoutMap?.().then((found) => {
    letters = found;
    showLetters();
  }, () => {});
};
