"""Audio files ↔ codes files: one, or all in a folder. Finished files are skipped, bad ones are listed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiovq.api.tokenizer import Progress, Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import check_writable
from audiovq.data.codes import Codes, check_codes_output, read_header
from audiovq.data.tracks import find_audio
from audiovq.pretrained.identity import sound_hash
from audiovq.utils.files import check_folder, file_sha256, output_name
from audiovq.utils.progress import ProgressBar, say

Facts = dict[str, Any]  # what was done; `summary` is a line for the user


class Encoding:
    title, suffix = "encode", ".codes"

    def __init__(self, tokenizer: Tokenizer, compress: bool):
        self.tokenizer, self.compress = tokenizer, compress

    def seconds(self, source: Path) -> float:
        return audio.audio_info(source).seconds

    @staticmethod
    def check(source: Path, target: Path) -> None:
        """Raises ValueError if the source is not audio, or the target is another file than codes."""
        check_codes_output(target, [source])
        audio.audio_info(source)

    def is_done(self, source: Path, target: Path) -> bool:
        """True if the target has the codes of this source by this tokenizer, compressed or not as wanted."""
        if not target.exists():
            return False
        header = read_header(target)
        wanted = self.tokenizer.hash, self.compress, file_sha256(source)
        return (header.tokenizer_hash, header.coding is not None, header.source_sha256) == wanted

    def convert(self, source: Path, target: Path, progress: Progress) -> Facts:
        codes = self.tokenizer.encode_file(source, progress)
        codes.save(target, self.compress)
        raw, stored = codes.bits_per_second / 1000, 8 * target.stat().st_size / codes.seconds / 1000
        summary = f"{codes.seconds:.3f} s, {raw:.2f} kbps, {stored:.2f} kbps with the header of the file"
        return {"seconds": codes.seconds, "kbps_raw": raw, "kbps_file": stored, "summary": f"{target}: {summary}"}


class Decoding:
    title = "decode"

    def __init__(self, tokenizer: Tokenizer, n_levels: int | None, suffix: str = ".wav"):
        self.tokenizer, self.n_levels, self.suffix = tokenizer, n_levels, suffix
        self.sound = sound_hash(tokenizer.network)  # that of the codes does not depend on the decoder

    def seconds(self, source: Path) -> float:
        header = read_header(source)
        return header.n_samples / header.sample_rate

    @staticmethod
    def check(source: Path, target: Path) -> None:
        """Raises ValueError if the source is not codes, or the target was not made by audiovq."""
        check_writable(target, [source])
        read_header(source)
        if target.exists() and not audio.audio_info(target).tags.get("comment", "").startswith("audiovq "):
            raise ValueError(f"{target}: exists, and was not decoded by audiovq; choose another --out, or delete it")

    def is_done(self, source: Path, target: Path) -> bool:
        """True if the target is complete and its comment names these codes and this decoder."""
        if not target.exists():
            return False
        comment = audio.audio_info(target).tags.get("comment")
        return comment == self._comment(source) and audio.has_samples(target, read_header(source).n_samples)

    def _comment(self, source: Path) -> str:
        return f"audiovq codes={file_sha256(source)} levels={self.n_levels or 'all'} decoder={self.sound[:12]}"

    def convert(self, source: Path, target: Path, progress: Progress) -> Facts:
        codes = Codes.load(source)
        self.tokenizer.decode_file(codes, target, self.n_levels, self._comment(source), progress)
        summary = f"{target}: {codes.n_samples} samples, {codes.seconds:.3f} s"
        return {"seconds": codes.seconds, "samples": codes.n_samples, "summary": summary}


def convert_file(kind: Encoding | Decoding, source: Path, target: Path, place: str = "") -> Facts:
    """Convert a file that `kind.check` has accepted; its `place` among others is in the progress bar."""
    with ProgressBar(f"{kind.title}{place}, s", int(kind.seconds(source)), unit="audio-s") as bar:
        return {"file": str(target), "source": str(source), **kind.convert(source, target, bar.advance)}


def convert_folder(kind: Encoding | Decoding, folder: Path, out: Path) -> Facts:
    """Convert every file below a folder to the same place below `out`; `set_aside` lists failures."""
    sources = find_audio(folder) if isinstance(kind, Encoding) else find_audio(folder, suffixes={".codes"})
    if not sources:
        raise ValueError(f"{folder}: nothing there to {kind.title}")
    check_folder(out)
    n_done, files, set_aside = 0, [], []
    for i, (source, target) in enumerate(mirrored(sources, folder, out, kind.suffix), start=1):
        try:
            kind.check(source, target)
            if kind.is_done(source, target):
                n_done += 1
            else:
                files.append(convert_file(kind, source, target, f" {i} of {len(sources)}"))
        except (ValueError, OSError) as error:
            set_aside.append(" ".join(str(error).split()))
            say(f"set aside: {set_aside[-1]}")
    summary = f"{out}: {len(files)} files {kind.title}d, {n_done} were done before"
    if set_aside:
        summary += f", {len(set_aside)} of {len(sources)} could not be {kind.title}d (each is named above)"
    return {"folder": str(out), "done_before": n_done, "files": files, "set_aside": set_aside, "summary": summary}


def mirrored(sources: Sequence[Path], folder: Path, out: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Each source with its target below `out`. Names that differ in their suffix alone keep it: a.wav.codes."""
    stems = Counter([*(source.with_suffix("") for source in sources), *sources])  # a.wav.flac may be beside a.wav
    jobs = []
    for source in sources:
        name = source.stem if stems[source.with_suffix("")] == 1 else source.name
        jobs.append((source, out / source.relative_to(folder).parent / output_name(name, suffix)))
    return jobs
