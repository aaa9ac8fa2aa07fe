"""One level of a piece: its prior with the past of its codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

from audiovq_player.drawing import gumbel_noise, next_code
from audiovq_player.line import OUTSIDE, Line
from audiovq_player.model import Model

MASKED = -1e9  # added to the attention scores of empty slots
FOREVER = 2**40  # a position that no piece reaches
NOISE_BLOCK = 64  # positions whose noise is computed at once


@dataclass
class Request:
    """What is to be made."""

    n_samples: int  # for timing; a piece without end takes itself to be so long
    endless: bool
    seed: int
    item: int
    settings: list[dict[str, float]]  # temperature, top_k, top_p and guidance of each level
    labels: dict[str, int] = field(default_factory=dict)  # number in the vocabulary, from 1 on
    text: str = ""
    chroma: np.ndarray | None = None  # pitch class plus one of each code of level 0
    notes: np.ndarray | None = None  # frame of notes of each code of level 0
    given: list[np.ndarray] | None = None  # int64 [n_codes] per level, -1 where a code is drawn


class Level:
    """Draws the codes of one level, from left to right.

    Args:
        lines: of this level and of all coarser ones.
    """

    def __init__(self, model: Model, level: int, request: Request, lines: list[Line]):
        facts = model.facts["priors"][level]
        self.facts, self.level, self.request, self.line, self.coarser = (
            facts,
            level,
            request,
            lines[level],
            lines[:level],
        )
        self.setting = request.settings[level]
        self.size, hops = model.facts["codebook_size"], model.hop_lengths
        self.ratio = hops[level - 1] // hops[level] if level else 1
        self.top_ratio = hops[0] // hops[level]
        self.strides = [hops[i] // hops[level - 1] for i in range(level)]  # codes of the level above per coarser code
        self.prefix = model.prefixes[level]
        has = {
            "labels": any(request.labels.get(name) for name in facts["labels"]),
            "text": bool(request.text and facts["text_bytes"]),
            "chroma": request.chroma is not None and "chroma" in facts["inputs"],
            "notes": request.notes is not None and "notes" in facts["inputs"],
        }
        self.guided = any(has.values()) and self.setting["guidance"] != 1
        self.rows = 2 if self.guided else 1
        self.given = None if request.given is None else request.given[level]
        # Nothing after the last drawn code goes through the network.
        drawn = np.flatnonzero(self.given < 0) if self.given is not None else None
        self.n_steps = self.line.n_codes if drawn is None else int(drawn[-1]) + 1 if len(drawn) else 0
        self.gap: int | None = -2  # the end of the gap that the prefix and `gap_end` are for
        self.noise, self.noise_start = np.zeros((0, self.size), np.float32), 0
        self._prepare(model, request, hops[level])

    def _prepare(self, model: Model, request: Request, hop: int) -> None:
        """Create the inputs once; the session reads and writes them in place."""
        facts, rows = self.facts, self.rows
        n_slots = facts["n_prefix"] + facts["window"]
        shape = (facts["n_layers"], 2, rows, facts["kv_heads"], n_slots, facts["head_dim"])
        self.cache = np.zeros(shape, np.float32)
        index = np.array([[request.labels.get(name, 0) for name in facts["labels"]]], np.int64)
        end = request.n_samples // (2 * hop) if request.endless else FOREVER
        n_around = 2 * facts["context_codes"] + 1
        known = {
            "labels": self._in_first_row(np.repeat(index, rows, axis=0)),
            "n_samples": np.array([request.n_samples], np.int64),
            "timing_end": np.array([end], np.int64),
            "chroma": np.zeros(rows, np.int64),
            "notes": np.zeros(rows, np.int64),
            "gap_end": np.array([OUTSIDE], np.int64),
            "coarser": np.zeros((rows, self.level, n_around), np.int64),
        }
        self.inputs = {
            "previous": np.full(rows, self.size, np.int64),
            "position": np.zeros(1, np.int64),
            "mask": np.full(n_slots, MASKED, np.float32),
            **{name: known[name] for name in facts["inputs"]},
        }
        self.inputs["mask"][: facts["n_prefix"]] = 0
        self.around = np.arange(n_around) - facts["context_codes"]
        for i in range(facts["n_layers"]):
            self.inputs |= {f"keys_{i}": self.cache[i, 0], f"values_{i}": self.cache[i, 1]}
        self.logits = np.zeros((rows, self.size), np.float32)
        self.new = np.zeros((rows, facts["n_layers"], 2, facts["kv_heads"], facts["head_dim"]), np.float32)
        self.session = model.priors[self.level]
        self.binding = self.session.io_binding()
        for name, array in self.inputs.items():
            self.binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, array in (("logits", self.logits), ("new", self.new)):
            self.binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def _in_first_row(self, array: np.ndarray) -> np.ndarray:
        """With guidance, the second row is without labels, text, chroma and notes."""
        array[1:] = 0
        return array

    def needed(self, position: int) -> list[int]:
        """How many codes of each coarser level this position needs."""
        end = position // self.ratio + self.facts["context_codes"] + 1
        return [-(-end // stride) for stride in self.strides]

    def advance(self) -> None:
        """Draw the next code, or take the given one, and put it into the line."""
        t = self.line.count
        code = OUTSIDE if self.given is None else int(self.given[t])
        if self.n_steps is None or t < self.n_steps:
            self._step(t)
            code = self._draw(t) if code < 0 else code
            self.inputs["previous"][:] = code
        self.line.put(code)

    def _step(self, t: int) -> None:
        facts, inputs = self.facts, self.inputs
        slot = facts["n_prefix"] + t % facts["window"]
        inputs["position"][0] = t
        if self.level and t % self.ratio == 0:
            inputs["coarser"][:] = self._coarser(t // self.ratio)
        for name, frames in (("chroma", self.request.chroma), ("notes", self.request.notes)):
            if name in inputs and frames is not None:
                frame = t // self.top_ratio
                inputs[name][0] = frames[frame] if frame < len(frames) else 0
        if self.prefix is not None:
            self._set_prefix(t)
        inputs["mask"][slot] = MASKED  # what is there is older than the window
        self.session.run_with_iobinding(self.binding)
        self.cache[..., slot, :] = self.new.transpose(1, 2, 0, 3, 4)
        inputs["mask"][slot] = 0

    def _draw(self, t: int) -> int:
        setting, logits = self.setting, self.logits[0]
        if self.guided:
            without = self.logits[1]
            logits = without + np.float32(setting["guidance"]) * (logits - without)
        if t - self.noise_start >= len(self.noise) or t < self.noise_start:
            end, request = t + NOISE_BLOCK, self.request
            self.noise_start = t
            self.noise = gumbel_noise(request.seed, request.item, self.level, t, end, self.size)
        noise = self.noise[t - self.noise_start]
        return next_code(logits, noise, setting["temperature"], int(setting["top_k"]), setting["top_p"])

    def _coarser(self, centre: int) -> np.ndarray:
        """The codes of all coarser levels around a code of the next coarser one, [level, 2 · context_codes + 1]."""
        index = centre + self.around
        n = self.line.n_codes
        n_above = None if n is None else -(-n // self.ratio)
        rows = np.stack([line.get(index // stride) for line, stride in zip(self.coarser, self.strides, strict=True)])
        outside = (index < 0) if n_above is None else (index < 0) | (index >= n_above)
        return np.where(outside | (rows < 0), self.size, rows)

    def _set_prefix(self, t: int) -> None:
        """Write what all codes attend to into the cache, when the gap at this position is another one."""
        gap = self._gap_end(t) if self.facts["infill_codes"] and self.given is not None else None
        if gap == self.gap:
            return
        self.gap, rows, inputs = gap, self.rows, dict[str, Any]()
        n_text, n_right = self.facts["text_bytes"], self.facts["infill_codes"]
        if n_text:
            text = np.zeros((rows, n_text), np.int64)
            found = np.frombuffer(self.request.text.encode()[:n_text], np.uint8)
            text[:, : len(found)] = found.astype(np.int64) + 1
            inputs["text"] = self._in_first_row(text)
        if n_right:
            right = np.full((rows, n_right), OUTSIDE, np.int64)
            if gap is not None and self.given is not None:
                after = self.given[gap : gap + n_right]
                right[:] = self.size
                right[:, : len(after)] = np.where(after < 0, self.size, after)
            inputs["right"] = right
            self.inputs["gap_end"][0] = OUTSIDE if gap is None else gap
        self.cache[..., : self.facts["n_prefix"], :] = np.asarray(self.prefix.run(None, inputs)[0])

    def _gap_end(self, t: int) -> int | None:
        """Where the first gap that is open at `t` or later ends; None if there is no gap, or nothing after it."""
        assert self.given is not None
        gaps = np.flatnonzero(self.given[t:] < 0)
        if not len(gaps):
            return None
        after = np.flatnonzero(self.given[t + gaps[0] :] >= 0)
        return int(t + gaps[0] + after[0]) if len(after) else None
