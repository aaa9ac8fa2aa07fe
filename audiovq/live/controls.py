"""What messages and MIDI events do: one place for all ways to steer. An error is a line for the user."""

from collections.abc import Callable, Sequence
from typing import Any

from audiovq.api import Live
from audiovq.config import whole_number
from audiovq.utils.progress import say

CC_RANGES = {1: ("temperature", 0.0, 2.0), 2: ("guidance", 0.0, 4.0), 74: ("top_p", 0.05, 1.0)}
ALL_OFF = (120, 123)  # controllers: all sound off, all notes off
NOTE_RESTART, NOTE_SEED, FIRST_NOTE = 36, 38, 48  # C2, D2 and C3


class Controls:
    """Steers a `Live` by names. `stop` ends the music; `report` is called with a line after each mistake."""

    def __init__(self, live: Live, stop: Callable[[], object], report: Callable[[str], object] = say):
        self.live, self.stop, self.report = live, stop, report
        self.values = [(name, value) for name, values in live.generator.labels.items() for value in values]
        self.plays_notes = any(prior.config.extra_inputs["notes"] for prior in live.generator.priors)
        self.held, self.chords = set[int](), ""  # keys, and the chords that they replaced

    def message(self, path: str, values: Sequence[Any]) -> None:
        """A message such as `temperature 1.1` or `label/timbre piano`.

        Args:
            path: the name of a control; `label/NAME`; restart or stop.
            values: one, or one per level; none is what the model recommends, or an unknown label. Of a label also
                several values with their shares, such as "piano", 0.3, "organ", 0.7.
        """
        name, _, label = path.strip("/").partition("/")
        try:
            if name == "label" and label:
                if len(values) > 1 and len(values) % 2:
                    raise ValueError(f"{path}: expected one value, or each with its share, found {len(values)} parts")
                shares = dict(zip(map(str, values[::2]), values[1::2], strict=False)) if len(values) > 1 else None
                self.live.set(labels={label: shares or (str(values[0]) if values else None)})
            elif name == "restart":
                self.live.restart()
            elif name == "stop":
                self.stop()
            elif name in ("seed", "top_k"):  # many programs send all numbers as floats
                numbers = [whole_number(value, name) for value in values]
                self.live.set(**{name: numbers[0] if len(numbers) == 1 else numbers or None})
            elif name in ("chords", "text"):  # some programs send each word by itself
                self.live.set(**{name: " ".join(map(str, values))})
            elif name == "notes":
                self.live.set(notes=[round(value) for value in values] or None)
            else:
                self.live.set(**{path.strip("/"): values[0] if len(values) == 1 else list(values) or None})
        except (ValueError, TypeError, OverflowError) as error:
            self.report("not changed: " + " ".join(str(error).split()))

    def midi(self, event: Any) -> None:
        """A mido message. Controllers: see `CC_RANGES`. Notes: C2 restarts, D2 takes the next seed, and from C3 on the
        held keys sound if the model knows notes; else each key is a value of a label, in the model's order."""
        if event.type == "control_change" and event.control in CC_RANGES:
            name, low, high = CC_RANGES[event.control]
            self.message(name, [low + (high - low) * event.value / 127])
        elif event.type == "control_change" and event.control in ALL_OFF:
            self._hold(set())
        elif event.type in ("note_on", "note_off") and self.plays_notes and event.note >= FIRST_NOTE:
            pressed = event.type == "note_on" and event.velocity
            self._hold(self.held | {event.note} if pressed else self.held - {event.note})
        elif event.type == "note_on" and event.velocity:
            index = event.note - FIRST_NOTE
            if event.note == NOTE_RESTART:
                self.message("restart", [])
            elif event.note == NOTE_SEED:
                self.message("seed", [self.live.seed + 1])
            elif 0 <= index < len(self.values):
                name, value = self.values[index]
                self.message(f"label/{name}", [value])

    def _hold(self, keys: set[int]) -> None:
        """The held keys sound; after the last one the chords that they replaced."""
        if keys and not self.held:
            self.chords = self.live.options.chords
        if keys != self.held:
            self.held = keys
            self.message(*(("notes", sorted(keys)) if keys or not self.chords else ("chords", [self.chords])))
