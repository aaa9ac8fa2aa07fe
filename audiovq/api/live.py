"""`Live`: music without end that can be changed while it sounds."""

import dataclasses
import json
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audiovq.api.options import PieceOptions, level_settings, make_request
from audiovq.config import whole_number
from audiovq.data.codes import Codes
from audiovq.pretrained.identity import prior_hash
from audiovq.prior.prior import SamplingConfig
from audiovq.sampling.endless import EndlessCodes
from audiovq.sampling.engine import few_threads
from audiovq.sampling.guidance import Request
from audiovq.utils.device import torch_defaults
from audiovq.utils.progress import listed

if TYPE_CHECKING:
    from audiovq.api.generator import Generator

FORMAT = "audiovq-live-1"
LONGEST_BLOCK = 0.8  # seconds, of `lighten`
CONTROLS = ("temperature", "top_k", "top_p", "guidance", "labels", "text", "notes", "chords", "seed")


class Live:
    """Music without end, at constant memory. `read` and `set` may be called from different threads.

    >>> live = generator.live(seed=0, timbre="organ")
    >>> block = live.read(0.5)  # float [channels, samples]
    >>> live.set(timbre="piano", temperature=1.1)  # from the next code on

    A prior with a timing conditioner takes the piece to be `piece_seconds` long; from the middle on, its
    time stands still. So the music begins like a piece, and never comes to the end.

    Args:
        piece_seconds: see above.
        keep_seconds: how much of the music `codes` can give back.
        block_seconds: of audio that is decoded at once. Longer blocks take less time a second of music, and
            make the latency longer.
        ahead_seconds: how far the decoder looks ahead. None is all that it depends on: the sound is then that of
            `Tokenizer.decode`. With less it differs a little.
        precision: of the priors' arithmetic, see `PieceOptions`.
        state: of `state()`, to continue there; seed and controls are then those of the state.
        controls: see `set`.
    Raises:
        ValueError: an unknown control, label or value, or a state of another model.
    """

    def __init__(
        self, generator: "Generator", seed: int = 0, *, piece_seconds: float = 180.0, keep_seconds: float = 600.0,
        block_seconds: float = 0.1, ahead_seconds: float | None = 0.25, precision: str = "auto",
        state: bytes | None = None, **controls: Any,
    ):  # fmt: skip
        self.generator, self.tokenizer, self.sample_rate = generator, generator.tokenizer, generator.sample_rate
        self.piece_samples, self.blocks = generator.n_samples(piece_seconds), [block_seconds, ahead_seconds]
        self.top_hop = generator.hop_lengths[0]
        self.slots = self.tokenizer.config.slots
        kept = -(-generator.n_samples(keep_seconds) // self.top_hop) + self.slots - 1
        self.frames: deque[Tensor] = deque(maxlen=kept)  # of codes of level 0, and all finer ones at that time
        self.seed, self.options = whole_number(seed, "seed"), PieceOptions(precision=precision)
        self.n_levels = len(generator.priors)
        self.wanted: tuple[list[SamplingConfig], Request] | None = None  # what the next code must have
        self.restarts = False
        self.drawn_with: dict[str, Any] = {}  # seed and options of the codes that are drawn
        self.reading, self.setting = threading.Lock(), threading.Lock()
        facts, tensors = (None, {}) if state is None else _unpacked(state)
        if facts:
            if facts["model"] != self._model():
                raise ValueError("state: expected one of this model, found one of another; load the model that made it")
            self.seed, self.options = facts["seed"], PieceOptions(**facts["options"])
            self.piece_samples, self.blocks = facts["piece_samples"], facts["blocks"]
            self.n_levels = facts["n_levels"]
        self.set(**({} if facts else controls))
        wanted, _ = self._take_changes()
        assert wanted is not None
        self._begin(*wanted, **(facts["drawn"].get("sizes", {}) if facts else {}))
        if facts:
            self._restore(facts, tensors)
            later, self.restarts = facts.get("later", facts), facts.get("restarts", False)
            self.seed, self.options = later["seed"], PieceOptions(**later["options"])
            if facts["pending"] or controls:  # the codes that were drawn ahead are from before the change
                self.set(**controls)

    def set(self, **controls: Any) -> None:
        """Change something from the next code on: the first that `codes` does not have yet.

        Args:
            controls: temperature, top_k, top_p and guidance (one value or one per level; None is what the
                model recommends), text, notes (MIDI pitches that sound, such as [60, 64, 67]; None is unknown) or
                chords (symbols, repeated, counted from the beginning of the music), seed, labels (a dict), or a label
                by its name, such as timbre="piano" or timbre={"piano": 0.3, "organ": 0.7}, a mixture. None or "" as the
                value of a label is unknown.
        Raises:
            ValueError: an unknown control, label or value; nothing is changed then.
        """
        with self.setting:
            labels, seed, options = dict(self.options.labels), self.seed, dict[str, Any]()
            for name, value in controls.items():
                if name == "labels":
                    if not isinstance(value, Mapping):
                        raise ValueError(f"labels: expected names with values, found {value!r:.60}")
                    labels |= value
                elif name == "seed":
                    seed = whole_number(value, "seed")
                elif name in CONTROLS:
                    options[name] = value if name not in ("text", "chords") else str(value or "")
                    if name == "notes" and not isinstance(value, list | tuple | type(None)):
                        raise ValueError(f"notes: expected MIDI pitches such as [60, 64, 67], found {value!r:.60}")
                    if name in ("notes", "chords") and options[name] not in (None, ""):  # it replaces the other
                        options = {"notes": None, "chords": "", **options}
                elif name in self.generator.labels:
                    labels[name] = value
                else:
                    known = listed([*CONTROLS, *self.generator.labels], name)
                    raise ValueError(f"{name:.60}: no such control; expected one of: {known}")
            options["labels"] = {name: value for name, value in labels.items() if value not in (None, "", {})}
            new = dataclasses.replace(self.options, **options)
            settings = level_settings(self.generator.sampling, new)[: self.n_levels]
            unguided = dataclasses.replace(new, guidance=None)  # which may be set before there is a label to follow
            request = make_request(self.generator.priors, self.piece_samples, seed, unguided)
            self.wanted = settings, dataclasses.replace(request, items=[0])
            self.options, self.seed = new, seed

    def restart(self) -> None:
        """Begin anew, with the controls as they are. What was played is forgotten."""
        with self.setting:
            self.restarts = True

    def lighten(self) -> bool:
        """For a machine that is too slow: from the next block on one level less, and blocks twice as long, up to
        `LONGEST_BLOCK`. `codes` then has the levels that are left. Returns whether it changed anything."""
        with self.reading:
            old, n = self.decoder.windows, max(1, self.n_levels - 1)
            block = old.step / self.sample_rate
            if n == self.n_levels and 2 * block > LONGEST_BLOCK:
                return False
            self.n_levels, self.blocks[0] = n, 2 * block if 2 * block <= LONGEST_BLOCK else block
            self.drawn.keep_levels(n)
            self.frames = deque((frame[: sum(self.drawn.per_top)] for frame in self.frames), self.frames.maxlen)
            self.decoder = self.tokenizer.decoder_stream(n, *self.blocks)
            windows = self.decoder.windows
            windows.low, windows.start = old.low, old.start
            windows.counts, windows.parts = old.counts[:n], old.parts[:n]
            self.set()
            return True

    @property
    def controls(self) -> dict[str, Any]:
        """The controls as they are."""
        return {"seed": self.seed, **{name: getattr(self.options, name) for name in CONTROLS[:-1]}}

    @property
    def latency_seconds(self) -> float:
        """The longest time, in seconds of music, from a change until codes sound that were drawn after it: what the
        decoder looks ahead, and a block. (Codes that the priors drew ahead are drawn again.)"""
        return self.decoder.latency_seconds

    def read(self, seconds: float) -> Tensor:
        """The next music, float [channels, round(seconds · sample_rate)]. One thread reads at a time."""
        n = self.generator.n_samples(seconds)
        with self.reading:
            while self.restarts or self.ready.shape[-1] < n:
                block = self._block()
                self.ready = torch.cat([self.ready, block], dim=-1)
            found, self.ready = self.ready[:, :n], self.ready[:, n:]
            return found

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks float [channels, n], as the decoder gives them, without end."""
        while True:
            with self.reading:
                block = self._block() if self.restarts or not self.ready.shape[-1] else self.ready
                self.ready = self.ready[:, :0]
            yield block

    @torch_defaults()
    def _begin(self, settings: list[SamplingConfig], request: Request, **sizes: int) -> None:
        self.decoder = self.tokenizer.decoder_stream(self.n_levels, *self.blocks)
        sizes = {"block": self.decoder.windows.step // self.top_hop, **sizes}  # the decoder waits for a block anyway
        self.drawn = EndlessCodes(self.generator.priors[: self.n_levels], settings, request, **sizes)
        self.ready = torch.zeros(self.tokenizer.config.channels, 0)
        self.frames.clear()

    def _take_changes(self) -> tuple[tuple[list[SamplingConfig], Request] | None, bool]:
        """What the next code must have if something changed, and whether the music begins anew."""
        with self.setting:
            wanted, restarts, self.wanted, self.restarts = self.wanted, self.restarts, None, False
            if wanted:
                self.drawn_with = self._settings()
            return wanted, restarts

    def _settings(self) -> dict[str, Any]:
        options = {name: value for name, value in dataclasses.asdict(self.options).items() if name != "chroma"}
        return {"seed": self.seed, "options": options}

    @torch_defaults()
    def _block(self) -> Tensor:
        """Draw codes until the decoder has something, which is returned."""
        with few_threads(self.generator.priors):
            wanted, restarts = self._take_changes()
            if restarts:
                self._begin(*(wanted or (self.drawn.settings, self.drawn.states[0].request)))
            elif wanted:
                self.drawn.change(*wanted)
            while True:
                if self.drawn.draw():
                    levels = self.drawn.read()
                    self.frames.append(torch.cat(levels).int().cpu())
                    waveform = self.decoder.push(levels).cpu()
                    if waveform.shape[-1]:
                        return waveform

    def codes(self, last_seconds: float | None = None) -> Codes:
        """The codes that were drawn last, rounded up to whole codes of level 0 or patches; default all that are kept.
        They reach beyond what `read` has given by what the decoder looks ahead. All of them, decoded by
        `decoder_stream` in the same blocks, give the same samples to the bit. ValueError if nothing was drawn yet."""
        with self.reading:
            frames, end, sizes = list(self.frames), self.drawn.states[0].start + self.drawn.n_out, self.drawn.per_top
        wanted = self.generator.n_samples(last_seconds) if last_seconds is not None else len(frames) * self.top_hop
        first, oldest = end - -(-wanted // self.top_hop), end - len(frames)
        first = max(first // self.slots, -(-oldest // self.slots)) * self.slots
        if not (frames := frames[first - oldest :]):
            raise ValueError("codes: expected music that was played, found none yet; read some first")
        parts = torch.stack(frames).long().split(sizes, dim=1)
        return self.tokenizer.make_codes([part.flatten() for part in parts], len(frames) * self.top_hop)

    def _model(self) -> list[str]:
        return [self.tokenizer.hash, *(prior_hash(prior) for prior in self.generator.priors)]

    def state(self) -> bytes:
        """Everything that the music depends on from here on, for `Generator.live(state=...)`: with it and the
        same model, the music continues to the bit on the same machine."""
        with self.reading:
            tensors, numbers = self.drawn.save()
            windows = self.decoder.windows
            tensors["ready"] = self.ready
            tensors |= {f"decoder.{level}": torch.cat(parts) for level, parts in enumerate(windows.parts) if parts}
            if self.frames:
                tensors["frames"] = torch.stack(list(self.frames))
            with self.setting:
                facts = {"format": FORMAT, "model": self._model(), **self.drawn_with, "later": self._settings()}
                facts |= {"pending": self.wanted is not None, "restarts": self.restarts}
            facts |= {"drawn": numbers, "decoder": [windows.low, windows.start, windows.counts]}
            facts |= {"piece_samples": self.piece_samples, "blocks": self.blocks, "n_levels": self.n_levels}
            header = json.dumps(facts, default=lambda number: number.tolist()).encode()  # NumPy's and torch's
            content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
            return struct.pack("<Q", len(header)) + header + content

    @torch_defaults()
    def _restore(self, facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        self.drawn.load(tensors, facts["drawn"])
        windows = self.decoder.windows
        windows.low, windows.start, windows.counts = facts["decoder"]
        parts = [tensors.get(f"decoder.{level}") for level in range(self.n_levels)]
        windows.parts = [[] if part is None else [part.to(self.decoder.device)] for part in parts]
        self.ready = tensors["ready"]
        self.frames.extend(tensors.get("frames", torch.zeros(0, 0)))


def _unpacked(state: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Raises ValueError for anything but a state."""
    try:
        end = 8 + struct.unpack("<Q", state[:8])[0]
        facts, tensors = json.loads(state[8:end]), load(state[end:])
        assert facts["format"] == FORMAT
    except (struct.error, ValueError, KeyError, TypeError, AssertionError, SafetensorError):
        raise ValueError("state: expected what `Live.state` gave, found something else") from None
    return facts, tensors
