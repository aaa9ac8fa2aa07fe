"""`audiovq sample`: what its options mean together, and the way from them to files."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.table import Table
from torch import Tensor

from audiovq import api
from audiovq.api.live import GrowingDecoder
from audiovq.api.splice import FADE_SECONDS, splice
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter, check_writable
from audiovq.data.codes import Codes
from audiovq.data.shards import Shards
from audiovq.distributed import collectives, launch
from audiovq.evaluation.copies import copy_reports, report_lines
from audiovq.recipe import codes_place
from audiovq.sampling.generate import CodesCallback, ignore_codes
from audiovq.sampling.inpainting import CodeMask
from audiovq.sampling.journal import JournalFolder
from audiovq.utils import signals
from audiovq.utils.files import check_folder
from audiovq.utils.progress import console, say

SECONDS = 20.0


@dataclass(frozen=True)
class SampleOptions:
    """The command line, as it was typed."""

    model: str | None
    seconds: float | None
    seed: int | None
    num: int
    index: int | None
    labels: dict[str, str]
    prompt: str | None
    source: str | None  # of --edit
    start: float | None
    end: float | None
    before: float
    after: float
    keep_levels: int | None
    keep_audio: bool
    best: int | None
    stream: str | None
    save_codes: bool
    gpus: int
    processes: int | None
    out: str | None
    temperature: list[float] | None
    top_k: list[int] | None
    top_p: list[float] | None
    guidance: list[float] | None
    text: str
    chroma: str | None
    precision: str
    segments: int
    check_copies: bool

    @property
    def items(self) -> range:
        return range(self.index or 0, (self.index or 0) + self.num)

    @property
    def asked(self) -> dict[str, Any]:
        """What the pieces should follow."""
        return {"labels": self.labels, "text": self.text, "chroma": self.chroma}

    @property
    def settings(self) -> dict[str, Any]:
        names = ("temperature", "top_k", "top_p", "guidance", "precision")
        return {name: getattr(self, name) for name in names} | {"parallel": self.segments}

    def check(self) -> None:
        """Raises ValueError for what makes no sense together."""
        changes = [self.start, self.end, self.before or None, self.after or None, self.keep_levels]
        wrong = {
            f"--num: expected at least 1, found {self.num}": self.num < 1,
            f"--best: expected 1 to {self.num} (of --num), found {self.best}": self.best is not None
            and not 1 <= self.best <= self.num,
            "--from, --to, --before, --after and --keep-levels need a piece; give one with --edit": not self.source
            and any(change is not None for change in changes),
            "--edit: expected one of --from and --to, --before and --after, or --keep-levels beside it": self.source
            and Path(self.source).suffix != ".codes"
            and all(change is None for change in changes),
            "--edit and --prompt: expected one of them": self.source and self.prompt,
            "--edit: the piece has a length of its own; leave out --seconds (--before and --after make it longer)": self.source
            and self.seconds is not None,
            "--keep-audio: expected an audio file in --edit or --prompt, whose waveform is kept": self.keep_audio
            and Path(self.source or self.prompt or "x.codes").suffix == ".codes",
            "--stream: only one piece can be heard while it is made; leave out --num and --best": self.stream
            and (self.num > 1 or self.best or collectives.world_size() > 1),
            "--stream and --keep-audio: expected one of them": self.stream and self.keep_audio,
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(message)


@dataclass
class Sampled:
    """What came of it."""

    options: SampleOptions
    model: Path
    seed: int
    seconds: float  # of each piece
    files: dict[int, Path]  # an item
    first_new_second: float  # where the first code was drawn
    copies: dict[Path, dict[str, Any]] = field(default_factory=dict)  # reports of this process's pieces

    @property
    def facts(self) -> dict[str, Any]:
        """For `--json`."""
        pieces = [{"item": item, "file": str(path)} for item, path in self.files.items()]
        for piece, path in zip(pieces, self.files.values(), strict=True):
            piece |= {"copies": self.copies[path]} if path in self.copies else {}
        return {"model": str(self.model), "seed": self.seed, "seconds": self.seconds, "pieces": pieces}


def sample(
    options: SampleOptions, arguments: Sequence[str], pick_model: Callable[[], Path],
    finished: Callable[[Sampled], object] = lambda sampled: None,
) -> Iterator[str]:  # fmt: skip
    """Make music as asked; yields the names of the files, each when it is written.

    Args:
        arguments: of this program, to start it anew on several GPUs.
        pick_model: which model was meant; says so.
        finished: called once when all files are there, by the first process.
    Raises:
        ValueError: options that cannot be.
        Interrupted: a signal asked to stop; the journals are kept.
    """
    gpus = options.gpus if options.gpus > 1 or not options.processes else None
    if not launch.run_on_several(arguments, gpus, options.processes, useful=options.num):
        with launch.processes(), signals.deferred():
            yield from _sample(options, pick_model, finished)


def _sample(
    options: SampleOptions, pick_model: Callable[[], Path], finished: Callable[[Sampled], object]
) -> Iterator[str]:
    options.check()
    first = collectives.rank() == 0
    drawn = collectives.broadcast_(torch.tensor(secrets.randbelow(10**6)))  # by all ranks, whether needed or not
    seed = int(drawn) if options.seed is None else options.seed
    target, paths = output_paths(options, seed)
    check_writable(target)
    folder = pick_model()
    shards = Shards(codes_place(folder)) if options.check_copies else None
    generator = api.Generator.from_pretrained(folder)
    written: dict[Path, Codes] = {}
    given, n_samples = _given(generator, options)
    mine = list(options.items)[collectives.rank() :: collectives.world_size()]
    if first:
        say(f"seed {seed}, {options.num} × {n_samples / generator.sample_rate:g} s")
    with (
        JournalFolder(target.with_name(f".{target.stem}.journal")) as journals,
        _streaming(options, generator, n_samples, target) as on_codes,
        _told_how_to_go_on(seed, journals),
    ):
        pieces = generator.pieces(
            n_samples, seed, mine, given=given, progress=first, journals=journals, on_codes=on_codes,
            **options.asked, **options.settings,
        )  # fmt: skip
        if options.best:
            drawn_pieces = dict(zip(mine, pieces, strict=True))
            kept = _best(generator, drawn_pieces, options)
            chosen = iter([(item, codes) for item, codes in drawn_pieces.items() if item in kept])
        else:
            kept, chosen = list(options.items), zip(mine, pieces, strict=True)
        for item, codes in chosen:
            path = paths[item - options.items[0]]
            _write(path, generator.tokenizer, codes, given, options)
            if options.save_codes:
                codes.save(path.with_suffix(".codes"))
            if shards:
                written[path] = codes
            yield str(path)
        reports = copy_reports(list(written.values()), shards) if shards else []
        copies = dict(zip(written, reports, strict=False))
        for path, report in copies.items():
            yield from (f"{path}: {line}" for line in report_lines(report))
        left = journals.remove()
        if left and first and collectives.world_size() == 1:
            say(f"{journals.folder}: still holds the unfinished work of {len(left)} other commands")
    collectives.barrier()  # the files of all processes are there
    if first:
        files, rate = {item: paths[item - options.items[0]] for item in kept}, generator.sample_rate
        finished(Sampled(options, folder, seed, n_samples / rate, files, _first_new(given, generator), copies))


def output_paths(options: SampleOptions, seed: int) -> tuple[Path, list[Path]]:
    """The output's name without numbers, and the name of each item: numbered if they are several, or if one was asked for
    by its number and not by a name."""
    target = Path(options.out or f"music-{seed}.wav")
    named = bool(options.out and target.suffix)
    if not target.suffix:
        target = target / f"music-{seed}.wav"
    if options.num == 1 and (options.index is None or named):
        return target, [target]
    return target, [target.with_stem(f"{target.stem}-{i}") for i in options.items]


def _write(path: Path, tokenizer: api.Tokenizer, codes: Codes, given: CodeMask | None, options: SampleOptions) -> None:
    """Decode into a file at constant memory; with --keep-audio, the source's own waveform where it was kept."""
    channels, rate = tokenizer.config.channels, tokenizer.sample_rate
    pieces = tokenizer.decode_stream(codes)
    if options.keep_audio and given:
        source, _ = audio.read_audio(options.source or options.prompt or "", rate, channels)
        kept = given.kept_stretches(codes.hop_lengths)
        pieces = splice(pieces, source, given.source_start, kept, codes.n_samples, round(FADE_SECONDS * rate))
    with AudioWriter(path, rate, channels) as file:
        for piece in pieces:
            file.write(piece)


def read_piece(tokenizer: api.Tokenizer, path: str) -> Codes:
    """Codes of a codes file, or of an audio file."""
    return Codes.load(path) if Path(path).suffix == ".codes" else tokenizer.encode_file(path)


def _given(generator: api.Generator, options: SampleOptions) -> tuple[CodeMask | None, int]:
    """What is kept of a prompt or an edited piece, and the samples of the result."""
    seconds = SECONDS if options.seconds is None else options.seconds
    if options.source is None:
        n_samples = generator.n_samples(seconds)
        if options.prompt is None:
            return None, n_samples
        return generator.begin_with(read_piece(generator.tokenizer, options.prompt), n_samples), n_samples
    piece = read_piece(generator.tokenizer, options.source)
    stretch = None
    if options.start is not None or options.end is not None:
        stretch = options.start or 0.0, piece.seconds if options.end is None else options.end
    given = generator.keep(
        piece, stretch=stretch, before=options.before, after=options.after, levels=options.keep_levels
    )
    return given, given.n_samples


def _first_new(given: CodeMask | None, generator: api.Generator) -> float:
    """Second of the first code that was drawn, of any level."""
    if given is None:
        return 0.0
    hops = generator.tokenizer.config.hop_lengths
    new = [(level < 0).reshape(-1, level.shape[-1]).any(dim=0).nonzero() for level in given.levels]
    first = [float(where[0]) * hop for where, hop in zip(new, hops, strict=False) if len(where)]
    return min(first, default=0.0) / generator.sample_rate


def _best(generator: api.Generator, pieces: dict[int, Codes], options: SampleOptions) -> list[int]:
    """The items that the priors rank first among those of all processes, after a table of their ranks.

    By likelihood (DALL-E, arXiv:2102.12092, section 2.6, reranks by another network, CLIP); where labels, a text or chroma
    were asked for, by how much likelier they make the codes, log p(codes | asked) - log p(codes) (VQ-VAE-2, arXiv:1906.00446, section
    3.4, rejects by a classifier; here the prior itself is the classifier).
    """
    costs = torch.zeros(2, options.num, dtype=torch.float64)  # bits a second, without and with labels
    mine = [item - options.items[0] for item in pieces]
    costs[0, mine] = torch.tensor(generator.bits_per_second(list(pieces.values())), dtype=torch.float64)
    asked = any(options.asked.values())
    if asked:
        told = generator.bits_per_second(list(pieces.values()), **options.asked)
        costs[1, mine] = torch.tensor(told, dtype=torch.float64)
    collectives.all_reduce_(costs)
    score = costs[0] - costs[1] if asked else -costs[0]
    order = score.argsort(descending=True, stable=True).tolist()
    if collectives.rank() == 0:
        _print_ranking(order, costs, options)
    return [order[i] + options.items[0] for i in range(options.best or 0)]


def _print_ranking(order: list[int], costs: Tensor, options: SampleOptions) -> None:
    asked = any(options.asked.values())
    table = Table("rank", "item", "bits/s", *(["bits/s as asked", "gain"] if asked else []), "")
    for rank, i in enumerate(order):
        numbers = [costs[0, i], costs[1, i], costs[0, i] - costs[1, i]][: 3 if asked else 1]
        kept = "kept" if rank < (options.best or 0) else ""
        table.add_row(str(rank + 1), str(options.items[i]), *(f"{float(x):.2f}" for x in numbers), kept)
    console.print(table)


@contextlib.contextmanager
def _told_how_to_go_on(seed: int, journals: JournalFolder) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, signals.Interrupted):
        say(f"what is done is kept in {journals.folder}; the same command with --seed {seed} goes on from there")
        raise


@contextlib.contextmanager
def _streaming(options: SampleOptions, generator: api.Generator, n_samples: int, target: Path) -> Iterator[CodesCallback]:
    """A listener that writes the top level's preview when that level is done, and streams the finest as it grows."""
    if options.stream is None:
        yield ignore_codes
        return
    network, rate = generator.tokenizer.network, generator.sample_rate
    done: dict[int, Tensor] = {}  # finished levels
    decoder = GrowingDecoder(network, n_samples, len(generator.priors))
    with (
        _stream_file(options.stream) as file,
        AudioWriter(file, rate, network.config.channels, n_samples) as wav,
    ):

        def listen(level: int, codes: Tensor, n_known: int) -> None:
            if level == len(generator.priors) - 1:
                for piece in decoder.feed([*done.values(), codes], n_known):
                    wav.write(piece)
            elif n_known == codes.shape[1]:
                if level == 0 and level not in done:
                    preview = target.with_stem(f"{target.stem}-preview")
                    with AudioWriter(preview, rate, network.config.channels) as whole:
                        for piece in GrowingDecoder(network, n_samples, 1).feed([codes], n_known):
                            whole.write(piece)
                    say(f"{preview}: the top level alone")
                done[level] = codes

        yield listen


@contextlib.contextmanager
def _stream_file(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        return
    check_folder(Path(name).parent)
    with Path(name).open("wb") as file:
        yield file
