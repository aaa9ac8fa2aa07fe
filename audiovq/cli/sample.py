"""`audiovq sample`: new music, or changes to a piece."""

import gc
import sys
from typing import Any

from click import Choice, FloatRange, IntRange, command, echo, option

from audiovq.cli import options

COUNT, NUMBER, SECONDS = IntRange(min=1), IntRange(min=0), {"type": float, "metavar": "SECONDS"}
NOTES_HELP = "MIDI file or recording whose notes to follow; default length: its own."
CODES_HELP = "Decode all of a changed recording; without this, the original audio stays outside the change."
OUT_HELP = "File that ends in .wav, .flac, .opus, .ogg (Opus) or .mp3, or folder; default music-<seed>.wav."
LUFS_HELP = "Make each piece so loud, such as -14, as far as peaks stay below -1 dBFS."


@command()
@options.model_option
@option("--seconds", type=float, help="Length of each piece, including a prompt; default 20.")
@option("--seed", type=NUMBER, help="The same seed gives the same music; default a random one.")
@option("--num", type=COUNT, default=1, show_default=True, help="Number of pieces.")
@option("--index", type=NUMBER, help="Index of the first piece: --index 3 is the fourth of --num 8.")
@options.piece_options
@option("--chroma", type=options.FILE, metavar="SONG", help="Recording whose melody and harmony to follow.")
@option("--notes", type=options.FILE, metavar="FILE", help=NOTES_HELP)
@option("--prompt", type=options.FILE, metavar="CLIP", help="Audio or codes file to continue.")
@option("--edit", "source", type=options.FILE, metavar="FILE", help="Audio or codes file to change.")
@option("--from", "start", **SECONDS, help="Replace the music from here; default the beginning.")
@option("--to", "end", **SECONDS, help="Replace the music up to here; default the end.")
@option("--before", default=0.0, **SECONDS, help="New music before the piece.")
@option("--after", default=0.0, **SECONDS, help="New music after the piece.")
@option("--keep-levels", type=int, help="Keep the first levels, replace the finer ones (within --from, --to).")
@option("--codes-only", is_flag=True, help=CODES_HELP)
@option("--best", type=COUNT, metavar="K", help="Of the --num pieces, keep those that the model ranks first.")
@option("--stream", type=options.FILE, metavar="FILE", help="WAV to write during generation; - is standard output.")
@option("--save-codes", is_flag=True, help="Also write a .codes file of each piece, for --edit.")
@option("--bits", type=Choice(["16", "24"]), default="16", help="Of WAV and FLAC; default 16.")
@option("--lufs", type=FloatRange(-60, 0), metavar="LUFS", help=LUFS_HELP)
@option("--gpus", type=COUNT, default=1, show_default=True, help="Distribute the pieces over this many GPUs.")
@option("--processes", type=COUNT, help="Distribute the pieces over this many processes on the CPU.")
@option("--out", type=options.FILE, metavar="PATH", help=OUT_HELP)
@options.report_option
@options.json_option
def sample(model: str | None, page: bool, json_file: str | None, **values: Any) -> None:
    """Make new music, or change a piece. The same command with the same seed makes the same files."""
    gc.disable()  # what importing makes stays; searching it for garbage delays the first sound
    from audiovq.pipeline.sample import Sampled, SampleOptions, sample as run

    gc.freeze()
    gc.enable()
    if json_file == "-" and values["stream"] == "-":
        raise ValueError("--json, --stream: only one of them can use standard output; name a file for the other")

    def finished(sampled: Sampled) -> None:
        facts = sampled.facts
        if page:
            from audiovq.pipeline.sample_page import write_page

            facts["report"] = write_page(sampled)
        options.write_json(json_file, facts)

    values["bits"] = int(values["bits"])
    chosen = SampleOptions(model=model, **values)
    for line in run(chosen, sys.argv[1:], lambda: options.pick_model(model), finished):
        if json_file != "-":
            echo(line, err=values["stream"] == "-")  # standard output may be the music
