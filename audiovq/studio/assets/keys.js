// Notes for the live page: a piano and pads of chords, played by mouse, fingers, computer keys and MIDI.
import { make } from "../player/player.js";
import { $, $$ } from "./words.js";

const FIRST = 48, OCTAVES = 2; // from C3 on, as MIDI notes
const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const ROW = [..."AWSEDFTGYHUJ"].map((letter) => `Key${letter}`); // places on the keyboard; the next, K, keeps
const PADS = { C: [48, 52, 55], Dm: [50, 53, 57], Em: [52, 55, 59], F: [53, 57, 60], G: [55, 59, 62], Am: [57, 60, 64],
  "B♭": [58, 62, 65], E7: [52, 56, 59, 62] };
const SHORTEST = 200, TAP = 1000; // milliseconds that a touch lasts at least, and one by a screen reader
const held = new Map(); // key, finger or MIDI key → its notes, and when it was pressed
const fingers = new Map(); // pointer → the button below it
let latched = [], octave = 1, changed = () => {}, letters = new Map();

const inOrder = (notes) => [...new Set(notes)].sort((a, b) => a - b);
export const sounding = () => inOrder([...held.values()].flatMap((each) => each.notes).concat(latched));
const isHolding = () => $("#live-hold").getAttribute("aria-pressed") === "true";
const notesOf = (button) => button.dataset.notes.split(" ").map(Number);
const show = () => {
  const notes = sounding();
  $$("#live-notes [data-notes]").forEach((button) =>
    button.setAttribute("aria-pressed", notesOf(button).every((note) => notes.includes(note))));
  changed();
};
const hold = (source, notes) => {
  clearTimeout(held.get(source)?.timer);
  if (!held.size) { // a new chord, or the same once more, which ends it
    const ends = latched.join() === notes.join();
    latched = [];
    if (ends) return show();
  }
  held.set(source, { notes, since: performance.now() });
  show();
};
const release = (source) => {
  const found = held.get(source), stays = isHolding();
  if (!found) return;
  const rest = found.since + SHORTEST - performance.now(); // music is drawn in blocks, which would miss a short touch
  if (rest > 0 && !stays) {
    found.timer = setTimeout(release, rest, source);
    return;
  }
  held.delete(source);
  if (stays) latched = inOrder([...latched, ...found.notes]);
  show();
};

const showLetters = () => $$("#live-notes kbd").forEach((each) => {
  const at = (each.parentElement.dataset.notes ?? NaN) - FIRST - 12 * octave;
  const code = each.dataset.code ?? ROW[at] ?? "";
  each.textContent = letters.get(code)?.toUpperCase() ?? code.slice(3);
});
/** A key of the computer; whether it is one of the piano's. */
export const playKey = ({ code, repeat }) => {
  const at = ROW.indexOf(code), shift = ["KeyZ", "KeyX"].indexOf(code);
  if ($("#live-notes").hidden || (at < 0 && shift < 0)) return false;
  if (shift >= 0) {
    octave = shift;
    showLetters();
  } else if (!repeat) hold(code, [FIRST + 12 * octave + at]);
  return true;
};
/** A key of a MIDI controller. */
export const playMidi = (note, isDown) => {
  if (isDown && note >= FIRST) hold(`midi ${note}`, [note]);
  else release(`midi ${note}`);
};

/** Shows the piano and the pads; `act` is called when other notes sound. */
export const fillNotes = (act) => {
  const host = $("#live-notes"), piano = $("#piano");
  changed = act;
  host.hidden = false;
  for (let i = 0; i < OCTAVES; i++)
    piano.append(make("div", { class: "octave" }, ...NAMES.map((name, at) => {
      const note = FIRST + 12 * i + at, isC4 = note === 60;
      const key = make("button", { type: "button", "data-notes": note, "aria-label": `${name}${3 + i}`, tabindex: isC4 ? 0 : -1,
        class: name.length > 1 ? "black" : "" }, make("kbd"), at ? "" : make("small", {}, `C${3 + i}`));
      key.style.gridColumn = `${at + 1 + (at > 4)} / span 2`; // 14 columns: white keys are two wide, black ones between them
      return key;
    })));
  $("#pads").append(...Object.entries(PADS).map(([name, notes]) =>
    make("button", { type: "button", "data-notes": notes.join(" ") }, name)));
  const keys = $$("button", piano), button = (element) => element?.closest("#live-notes [data-notes]");
  const point = ({ pointerId, clientX, clientY }) => { // a finger may glide from key to key
    const found = button(document.elementFromPoint(clientX, clientY));
    if (!found || fingers.get(pointerId) === found) return;
    fingers.set(pointerId, found);
    hold(pointerId, notesOf(found));
  };
  host.addEventListener("pointerdown", (event) => event.button === 0 && button(event.target) && point(event));
  host.addEventListener("pointermove", (event) => fingers.has(event.pointerId) && point(event));
  for (const end of ["pointerup", "pointercancel"])
    addEventListener(end, ({ pointerId }) => fingers.delete(pointerId) && release(pointerId));
  host.addEventListener("mousedown", (event) => { // the focus leaves text fields, so that the computer's keys play
    if (!button(event.target)) return;
    event.preventDefault();
    document.activeElement.blur();
  });
  host.addEventListener("contextmenu", (event) => button(event.target) && event.preventDefault());
  host.addEventListener("click", ({ target, detail }) => {
    if (detail || !button(target)) return; // a screen reader
    hold("click", notesOf(button(target)));
    setTimeout(release, TAP, "click");
  });
  host.addEventListener("keydown", (event) => {
    const found = button(event.target), next = keys[keys.indexOf(found) + { ArrowLeft: -1, ArrowRight: 1 }[event.key]];
    if (next && keys.includes(found)) {
      [found.tabIndex, next.tabIndex] = [-1, 0];
      next.focus();
    } else if (found && [" ", "Enter"].includes(event.key)) {
      event.preventDefault();
      if (!event.repeat) hold(event.code, notesOf(found));
    }
  });
  host.addEventListener("keyup", (event) => button(event.target) && event.key === " " && event.preventDefault());
  addEventListener("keyup", ({ code }) => release(code));
  addEventListener("blur", () => [...held.keys()].forEach((source) => String(source).startsWith("midi") || release(source)));
  $("#live-hold").addEventListener("click", () => {
    $("#live-hold").setAttribute("aria-pressed", !isHolding());
    latched = [];
    show();
  });
  show();
  showLetters();
  navigator.keyboard?.getLayoutMap?.().then((found) => {
    letters = found;
    showLetters();
  }, () => {});
};
