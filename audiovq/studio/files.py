"""What a browser plays, shows and downloads, as files of one desk: each is written when it is first asked for."""

from __future__ import annotations

from pathlib import Path

import soundfile

from audiovq.api import Tokenizer
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.studio.code_images import draw_codes
from audiovq.studio.versions import Version
from audiovq.utils.files import atomic_file


class Files:
    """Files in `folder`, which is made; names begin with the version's number."""

    def __init__(self, tokenizer: Tokenizer, folder: Path):
        self.tokenizer, self.folder = tokenizer, folder
        folder.mkdir(parents=True)
        self.n_sketches = 0

    def sound(self, version: Version) -> Path:
        """16-bit WAV, as `Tokenizer.decode_file` writes it."""
        path = self._path(version, ".wav")
        if not path.exists():
            self.tokenizer.decode_file(version.codes, path)
        return path

    def flac(self, version: Version) -> Path:
        """The same samples as FLAC."""
        path = self._path(version, ".flac")
        if not path.exists():
            samples, rate = soundfile.read(self.sound(version), dtype="int16")
            with atomic_file(path, flush=False) as temporary:
                soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
        return path

    def codes(self, version: Version) -> Path:
        path = self._path(version, ".codes")
        if not path.exists():
            version.codes.save(path)
        return path

    def picture(self, version: Version) -> Path:
        path = self._path(version, ".png")
        if not path.exists():
            waveform, rate = audio.read_audio(self.sound(version))
            with atomic_file(path, flush=False) as temporary:
                draw_codes(waveform, rate, version.codes, temporary)
        return path

    def sketch(self, codes: Codes, n_levels: int | None = None, kind: str = "sketch") -> Path:
        """16-bit WAV of codes that are no version, or of their first levels."""
        path = self.new_path(kind, ".wav")
        self.tokenizer.decode_file(codes, path, n_levels)
        return path

    def new_path(self, kind: str, suffix: str) -> Path:
        self.n_sketches += 1
        return self.folder / f"{kind}-{self.n_sketches}{suffix}"

    def drop_sketches(self, kind: str = "sketch") -> None:
        for path in self.folder.glob(f"{kind}-*"):
            path.unlink(missing_ok=True)

    def drop(self, version: Version) -> None:
        for suffix in (".wav", ".flac", ".codes", ".png"):
            self._path(version, suffix).unlink(missing_ok=True)

    def _path(self, version: Version, suffix: str) -> Path:
        return self.folder / f"audiovq-{version.number}{suffix}"
