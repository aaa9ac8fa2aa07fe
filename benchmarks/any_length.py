"""Peak memory and time of `audiovq sample` for pieces of 1, 2, 5 and 10 minutes, each in a process of its own.

python benchmarks/any_length.py [--model MODEL] [--minutes 1,2,5,10]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile

from audiovq import api

ROOT = Path(__file__).parent.parent
# The peak of the process itself; a child's would be the largest of all children so far.
MEASURED = """
import json, resource, sys
from audiovq.cli import main
try:
    main(sys.argv[1:])
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"peak": usage.ru_maxrss, "cpu": usage.ru_utime + usage.ru_stime}))
"""


def measure(model: str, seconds: float, out: Path) -> dict[str, float]:
    command = ["sample", "--model", model, "--seconds", str(seconds), "--seed", "0", "--out", str(out)]
    began = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, cwd=ROOT)
    wall = time.perf_counter() - began
    facts = json.loads(result.stdout.splitlines()[-1])
    info = soundfile.info(out)
    assert info.frames == round(seconds * info.samplerate), f"{info.frames} samples for {seconds} s"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return {"megabytes": facts["peak"] * unit / 1e6, "cpu": facts["cpu"], "wall": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(api.bundled_model()))
    parser.add_argument("--minutes", default="1,2,5,10")
    options = parser.parse_args()
    print("minutes   peak MB   of the first   CPU s   CPU s a minute   wall s")
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for minutes in map(float, options.minutes.split(",")):
            found = measure(options.model, 60 * minutes, Path(folder) / "x.wav")
            first = first or found["megabytes"]
            print(
                f"{minutes:7g} {found['megabytes']:9.0f} {found['megabytes'] / first:14.3f} {found['cpu']:7.1f} "
                f"{found['cpu'] / minutes:16.1f} {found['wall']:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
