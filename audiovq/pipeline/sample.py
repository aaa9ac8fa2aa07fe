"""`audiovq sample`: from the options of the command line to files."""

import contextlib
import dataclasses
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from audiovq.api import Generator, PieceOptions, Tokenizer
from audiovq.api.splice import keep_original
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter, check_writable, piece_tags
from audiovq.data.codes import Codes, check_codes_output
from audiovq.data.notes import requested_frames
from audiovq.distributed import collectives, launch
from audiovq.evaluation.loudness import loudness, normalized
from audiovq.pretrained.locate import model_licence
from audiovq.sampling.generate import CodesCallback, ignore_codes
from audiovq.sampling.inpainting import CodeMask
from audiovq.utils import signals
from audiovq.utils.files import check_folder, check_output
from audiovq.utils.progress import console, say

SECONDS = 20.0
STREAM_SECONDS = 0.25, 2.0  # of audio that is decoded at once for --stream: at first, and at most


@dataclass(frozen=True, kw_only=True)
class SampleOptions(PieceOptions):
    model: str | None = None
    seconds: float | None = None
    seed: int | None = None
    num: int = 1
    index: int | None = None
    prompt: str | None = None
    source: str | None = None  # of --edit
    start: float | None = None  # of --from
    end: float | None = None  # of --to
    before: float = 0.0
    after: float = 0.0
    keep_levels: int | None = None
    codes_only: bool = False
    best: int | None = None
    stream: str | None = None
    save_codes: bool = False
    bits: int = 16
    lufs: float | None = None
    gpus: int = 1
    processes: int | None = None
    out: str | None = None

    @property
    def length(self) -> float:
        """Seconds of a piece that no other piece gives a length."""
        return SECONDS if self.seconds is None else self.seconds

    @property
    def items(self) -> range:
        return range(self.index or 0, (self.index or 0) + self.num)

    @property
    def keeps_audio(self) -> bool:
        """Whether the original audio stays outside the change of a recording."""
        is_recording = self.source is not None and Path(self.source).suffix != ".codes"
        return is_recording and not self.stream and not self.codes_only

    def check(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        amounts = (self.start, self.end, self.keep_levels)
        change = self.before or self.after or any(amount is not None for amount in amounts)
        if self.best and self.best > self.num:
            yield f"--best: expected 1 to {self.num} (of --num), found {self.best}"
        if (change or self.codes_only) and not self.source:
            yield "--from, --to, --before, --after, --keep-levels and --codes-only need the piece to change: --edit FILE"
        if self.source and self.prompt:
            yield "--edit and --prompt: expected one of them; --edit changes a piece, --prompt continues it"
        if self.source and not change and Path(self.source).suffix != ".codes":
            yield "--edit: add what to change: --from and --to, --before and --after, or --keep-levels"
        if self.source and self.seconds is not None:
            yield "--edit: the piece has a length; leave out --seconds (--before and --after make it longer)"
        if self.stream and (self.num > 1 or self.best or collectives.world_size() > 1):
            yield "--stream plays one piece while it is made; leave out --num and --best"
        if self.stream and (self.lufs is not None or self.bits != 16):
            yield "--stream is 16-bit WAV, and --lufs needs a whole piece; leave out --bits and --lufs"
        suffix = self.paths()[0].suffix.lower()
        if self.bits != 16 and suffix not in (".wav", ".flac"):
            yield f"--bits: of WAV and FLAC files, found {suffix} in --out; leave it out"

    def paths(self) -> tuple[Path, dict[int, Path]]:
        """The output's name without numbers, and the name of each item. Names are numbered if there are
        several items, or if `index` is given and `out` names no file."""
        target = Path(self.out or f"music-{self.seed}.wav")
        named = bool(self.out and target.suffix)
        if not target.suffix:
            target = target / f"music-{self.seed}.wav"
        if self.num == 1 and (self.index is None or named):
            return target, {self.items[0]: target}
        return target, {i: target.with_stem(f"{target.stem}-{i}") for i in self.items}


@dataclass
class Sampled:
    options: SampleOptions  # with the seed that was used
    model: Path
    seconds: float  # of each piece
    files: dict[int, Path]  # of each item
    first_new_second: float  # where the first new code is
    tokenizer: Tokenizer

    @property
    def facts(self) -> dict[str, Any]:
        pieces = [{"item": item, "file": str(path)} for item, path in self.files.items()]
        return {"model": str(self.model), "seed": self.options.seed, "seconds": self.seconds, "pieces": pieces}


def sample(
    options: SampleOptions, arguments: Sequence[str], pick_model: Callable[[], Path],
    finished: Callable[[Sampled], object] = lambda sampled: None,
) -> Iterator[str]:  # fmt: skip
    """Make music; yields the name of each file when it is whole. `arguments` are those of this program, to start it on
    several GPUs; the first process calls `finished` when all are there. ValueError for options that cannot be."""
    gpus = options.gpus if options.gpus > 1 or not options.processes else None
    if launch.run_on_several(arguments, gpus, options.processes, (options.num, f"--num is {options.num}")):
        return
    with launch.processes(), signals.deferred():
        options.check()
        new_seed = int(collectives.broadcast_(torch.tensor(secrets.randbelow(10**6))))  # all ranks take part
        seed, first = new_seed if options.seed is None else options.seed, collectives.rank() == 0
        options = dataclasses.replace(options, seed=seed, progress=first)
        target, paths = options.paths()
        _check_outputs(options, target, paths.values())
        folder = pick_model()
        model = Path(options.model or folder).name
        generator = Generator.from_pretrained(folder)
        notes, rate = options.notes, generator.sample_rate
        if notes is not None:  # read once
            frames = requested_frames(notes, rate, generator.hop_lengths[0])
            seconds = len(frames) * generator.hop_lengths[0] / rate
            seconds = seconds if options.seconds is None and not options.source else options.seconds
            options = dataclasses.replace(options, notes=frames, seconds=seconds)
        given = _given(generator, options)
        n_samples = given.n_samples if given else generator.n_samples(options.length)
        say(f"seed {seed}, {options.num} × {n_samples / generator.sample_rate:g} s")
        mine, chosen = options.items[collectives.rank() :: collectives.world_size()], list(options.items)
        with _live(options, generator, n_samples) as on_codes:
            order = {"on_codes": on_codes, "in_time_order": bool(options.stream)}
            pieces = zip(mine, generator.pieces(n_samples, seed, mine, options, given=given, **order), strict=True)
            if options.best:
                candidates = dict(pieces)
                chosen = _best(generator, candidates, options)
                pieces = ((item, codes) for item, codes in candidates.items() if item in chosen)
            for item, codes in pieces:
                # The licence is read here, because that loads the hub's client, and --stream sounds before.
                labels = {**({"item": str(item)} if item else {}), **options.labels}
                tags = piece_tags(paths[item].stem, model, seed, labels, model_licence(folder))
                _write(paths[item], generator.tokenizer, codes, given, options, tags)
                yield str(paths[item])
        collectives.barrier()  # the files of all processes are there
        files = {item: paths[item] for item in chosen}
        names = [path.name for path in files.values()]
        listed = ", ".join(names) if len(names) < 5 else f"{len(names)} files, {names[0]} to {names[-1]},"
        again = f"--seed {seed}" + (f" --num 1 --index {chosen[0]}" if len(chosen) == 1 < options.num else "")
        say(f"{listed} in {target.parent.resolve()}; the same command with {again} makes the same music again")
        if first:
            first_new = given.first_new_sample(generator.hop_lengths) / rate if given else 0.0
            options = dataclasses.replace(options, notes=notes)
            finished(Sampled(options, folder, n_samples / rate, files, first_new, generator.tokenizer))


def _check_outputs(options: SampleOptions, target: Path, paths: Iterable[Path]) -> None:
    """Raises ValueError if a file cannot be written, or would replace an input."""
    inputs = [options.source, options.prompt, options.chroma, options.notes]
    for path in [target, *paths]:
        check_writable(path, inputs)
        if options.save_codes:
            check_codes_output(path.with_suffix(".codes"), inputs)
    if options.stream and options.stream != "-":
        check_folder(Path(options.stream).parent)
        check_output(Path(options.stream), [b"RIFF"], inputs)


def _write(
    path: Path, tokenizer: Tokenizer, codes: Codes, given: CodeMask | None, options: SampleOptions, tags: dict[str, str]
) -> None:
    """Decode into a file, with the original audio of a recording where all codes stayed."""
    channels, rate = tokenizer.config.channels, tokenizer.sample_rate
    pieces = tokenizer.decode_stream(codes)
    if options.keeps_audio and given and given.given_stretches(codes.hop_lengths):
        source, own_rate = audio.read_audio(options.source or "")
        pieces = [keep_original(pieces, rate, source, own_rate, given, codes.hop_lengths)]
        channels, rate = source.shape[0], own_rate
    if options.lufs is not None:  # the whole piece is in memory
        pieces = [normalized(torch.cat(list(pieces), dim=-1), rate, options.lufs)]
        if (found := loudness(pieces[0], rate)) < options.lufs - 0.1:
            say(f"{path}: {found:.1f} LUFS instead of {options.lufs:g}: louder, its peaks would exceed -1 dBFS")
    if options.save_codes:
        codes.save(path.with_suffix(".codes"))
    with AudioWriter(path, rate, channels, tags=tags, bits=options.bits) as file:
        for piece in pieces:
            file.write(piece)


def read_piece(tokenizer: Tokenizer, path: str) -> Codes:
    return Codes.load(path) if Path(path).suffix == ".codes" else tokenizer.encode_file(path)


def _given(generator: Generator, options: SampleOptions) -> CodeMask | None:
    """The codes that stay, of a prompt or of a piece that is changed."""
    if options.prompt:
        piece = read_piece(generator.tokenizer, options.prompt)
        return generator.begin_with(piece, generator.n_samples(options.length))
    if not options.source:
        return None
    piece = read_piece(generator.tokenizer, options.source)
    start, end = options.start or 0.0, piece.seconds if options.end is None else options.end
    kept = {"before": options.before, "after": options.after, "levels": options.keep_levels}
    is_stretch = options.start is not None or options.end is not None
    return generator.keep(piece, stretch=(start, end) if is_stretch else None, **kept)


def _best(generator: Generator, pieces: dict[int, Codes], options: SampleOptions) -> list[int]:
    """The items that the priors rank first among those of all processes; prints a table. The cost is the information
    in bits a second. With labels, a text, chroma or notes it is that with these conditions minus that without: log
    p(codes) - log p(codes | conditions). Source: DALL-E, arXiv:2102.12092, section 2.6. Differs: the prior itself
    ranks, instead of another network."""
    mine, codes = [item - options.items[0] for item in pieces], list(pieces.values())
    found = generator.bits_per_second(codes)
    if options.conditional:
        wanted = {name: getattr(options, name) for name in ("labels", "text", "chroma", "notes", "chords")}
        found = [b - a for a, b in zip(found, generator.bits_per_second(codes, **wanted), strict=True)]
    cost = torch.zeros(options.num, dtype=torch.float64)
    cost[mine] = torch.tensor(found, dtype=torch.float64)
    collectives.all_reduce_(cost)
    order = cost.argsort(stable=True).tolist()
    cost_name = "bits/s with these conditions minus without" if options.conditional else "bits/s"
    table = Table("rank", "item", cost_name, "", title="How well the model predicts each piece, best first")
    for rank, i in enumerate(order, start=1):
        chosen = "chosen" if rank <= (options.best or 0) else ""
        table.add_row(str(rank), str(options.items[i]), f"{float(cost[i]):.2f}", chosen)
    console.print(table)
    return [options.items[i] for i in order[: options.best]]


class LiveDecoder:
    """Decodes one piece while it is drawn, as a callback; `write` takes the waveform, float [channels, any n]."""

    def __init__(self, tokenizer: Tokenizer, n_samples: int, n_levels: int, write: Callable[[Tensor], object]):
        self.n_samples, self.write, self.longest = n_samples, write, STREAM_SECONDS[1] * tokenizer.sample_rate
        self.lengths = [-(-n_samples // hop) for hop in tokenizer.config.hop_lengths[:n_levels]]
        self.decoder = tokenizer.decoder_stream(n_levels, STREAM_SECONDS[0])
        self.counts = [0] * n_levels  # codes of each level so far

    def __call__(self, level: int, codes: Tensor) -> None:
        blocks = [codes[0, :0] for _ in self.lengths]
        blocks[level] = codes[0, self.counts[level] :]
        self.counts[level] = codes.shape[1]
        if (block := self.decoder.push(blocks)).shape[-1]:
            self.write(block)
            if 2 * self.decoder.windows.step <= self.longest:
                self.decoder.windows.step *= 2  # more at once takes less computing
        if self.counts == self.lengths:
            self.write(self.decoder.finish(self.n_samples))


@contextlib.contextmanager
def _live(options: SampleOptions, generator: Generator, n_samples: int) -> Iterator[CodesCallback]:
    """For --stream, a callback that writes the piece as it grows."""
    if options.stream is None:
        yield ignore_codes
        return
    tokenizer, n_levels = generator.tokenizer, len(generator.priors)
    with (
        contextlib.nullcontext(sys.stdout.buffer) if options.stream == "-" else open(options.stream, "wb") as file,
        AudioWriter(file, generator.sample_rate, tokenizer.config.channels, n_samples) as wav,
    ):
        yield LiveDecoder(tokenizer, n_samples, n_levels, wav.write)
