"""What the page shows: values for its players, links and sentences."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from audiovq.data.codes import Codes
from audiovq.report.code_images import LEFT, RIGHT
from audiovq.report.contents import prefix_name
from audiovq.studio.uploads import Recording
from audiovq.studio.versions import Files, Version


def address(path: Path) -> str:
    """The URL of a file, relative to the page, so that it also works behind a proxy."""
    return f"gradio_api/file={quote(str(path))}"


def sketch_player(path: Path, n_levels: int, n_all: int) -> dict[str, Any]:
    sketch, whole = f"A sketch: {n_levels} of {n_all} levels", "All levels; the picture follows"
    return {"sound": address(path), "title": sketch if n_levels < n_all else whole, "piece": "new"}


def version_player(version: Version, files: Files) -> dict[str, Any]:
    origin = f"Made from version {version.parent}" if version.parent else "A beginning"
    if version.seed is not None:
        origin += f", seed {version.seed}"
    return {
        "sound": address(files.sound(version)),
        "title": f"Version {version.name}",
        "note": f"{origin}. Each strip shows the codes of a level; equal codes have equal colours. "
        "Drag over the picture to mark a part, click to play from there.",
        "piece": "new",
        "markable": True,
        **_picture(files.picture(version), version.codes),
    }


def _picture(path: Path, codes: Codes) -> dict[str, Any]:
    return {"picture": address(path), "seconds": codes.seconds, "left": LEFT, "right": RIGHT}


def take_player(version: Version, files: Files, i: int) -> dict[str, Any]:
    return {"sound": address(files.sound(version)), "title": f"Take {i + 1}", "piece": "new"}


def version_downloads(version: Version, files: Files) -> str:
    links = ""
    for kind, path in (("WAV", files.sound(version)), ("Codes", files.codes(version))):
        links += f'<a href="{address(path)}" download="{path.name}">{kind}</a>'
    return f'<div class="downloads"><span>Download</span>{links}</div>'


def recording_players(recording: Recording) -> tuple[str, list[dict[str, Any]]]:
    """A sentence about a recording; players for the recording itself, then for each prefix of levels."""
    codes = recording.codes
    note = "The recording, with its codes above its spectrogram" if recording.is_audio else "Saved codes"
    original = {"sound": address(recording.original), "title": recording.name, "note": note}
    players = [original | _picture(recording.picture, codes)]
    rates = [codes.sample_rate / hop_length for hop_length in codes.hop_lengths]
    for n, path in enumerate(recording.prefixes, start=1):
        kbps = sum(rates[:n]) * math.log2(codes.codebook_size) / 1000
        note = f"{sum(rates[:n]):.0f} codes per second, {kbps:.2f} kbit/s"
        players.append({"sound": address(path), "title": prefix_name(n, len(rates)), "note": note})
    left_out = f" ({recording.note})" if recording.note else ""
    sentence = f"**{html.escape(recording.name)}**: {codes.seconds:.1f} s{left_out}, as the model hears it."
    return sentence, players
