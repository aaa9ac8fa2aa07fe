"""Peak memory and speed of encoding and decoding a long file, each in a process of its own.

python benchmarks/long_file.py [--minutes 180] [--model MODEL] [--rate 44100] [--compress]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile

from audiovq import api
from audiovq.data.audio import audio_info, stream_audio
from audiovq.data.audio_writer import AudioWriter

ROOT = Path(__file__).parent.parent
COMMAND = """
import resource, sys
from audiovq.cli import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    assert not error.code, error.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def make_file(path: Path, seconds: float, rate: int) -> None:
    """The recordings in samples/, one after the other and again, as stereo."""
    sources = sorted((ROOT / "samples" / "recordings").glob("*.opus"))
    n_samples, at = round(seconds * rate), 0
    with AudioWriter(path, rate, 2) as file:
        while at < n_samples:
            source = sources.pop(0)
            sources.append(source)
            for block in stream_audio(source, rate, 2):
                file.write(block[:, : max(0, n_samples - at)])
                at += block.shape[1]


def run(title: str, seconds: float, *arguments: object) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines, wall = done.stdout.strip().splitlines(), time.perf_counter() - began
    print(f"{title}: {float(lines[-1]):.0f} MB at the peak, {wall:.1f} s, {seconds / wall:.1f} × real time")
    print(f"    {lines[-2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("--model", default=str(api.bundled_model()))
    parser.add_argument("--rate", type=int, default=44100, help="of the file, Hz")
    parser.add_argument("--compress", action="store_true")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        path, codes, back = (Path(folder) / name for name in ("long.flac", "long.codes", "back.flac"))
        make_file(path, seconds, options.rate)
        print(f"{audio_info(path).seconds:.3f} s of stereo at {options.rate} Hz, FLAC; model {options.model}")
        extra = ["--compress"] if options.compress else []
        run("encode", seconds, "encode", path, "-o", codes, "--model", options.model, *extra)
        run("decode", seconds, "decode", codes, "-o", back, "--model", options.model)
        print(f"{soundfile.info(back).frames} samples came back")


if __name__ == "__main__":
    main()
