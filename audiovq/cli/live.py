"""`audiovq live`: music without end, steered while it sounds."""

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

from click import FloatRange, IntRange, argument, command, option

from audiovq.cli import options
from audiovq.utils.environment import require

OUT_HELP = "Write here instead of playing: a WAV, FLAC, Opus, Ogg or MP3 file, or - for standard output."
DEVICE_HELP = "Sound card: a part of its name, or its number; `null` plays to nowhere. Default: the system's."
BLOCK_HELP = "Audio decoded at once. More needs less computing, and changes are heard later."
BUFFER_HELP = "Music made ahead. More survives interruptions, and changes are heard later."


@command()
@argument("model", type=options.FOLDER, required=False)
@option("--seed", type=IntRange(min=0), default=0, show_default=True, help="The same seed gives the same music.")
@options.piece_options
@option("--device", metavar="NAME", help=DEVICE_HELP)
@option("--out", type=options.FILE, metavar="FILE", help=OUT_HELP)
@option("--seconds", type=options.POSITIVE, help="Stop after so long; default never. A file needs it.")
@option("--osc", type=IntRange(1, 65535), metavar="PORT", help="Listen to OSC messages on this UDP port.")
@option("--osc-host", default="127.0.0.1", show_default=True, help="Address for --osc; 0.0.0.0 admits everybody.")
@option("--midi", metavar="PORT", help="Listen to a MIDI controller: a part of the port's name.")
@option("--buffer", type=FloatRange(0.02, 60), default=0.15, show_default=True, metavar="SECONDS", help=BUFFER_HELP)
@option("--block", type=FloatRange(0, 60), default=0.1, show_default=True, metavar="SECONDS", help=BLOCK_HELP)
@option("--save-codes", type=options.FILE, metavar="FILE", help="At the end, write the codes of the last ten minutes.")
def live(
    model: str | None, seed: int, device: str | None, out: str | None, seconds: float | None, osc: int | None,
    osc_host: str, midi: str | None, buffer: float, block: float, save_codes: str | None, **controls: Any,
) -> None:  # fmt: skip
    """Play music without end from MODEL, and change it while it sounds.

    MODEL is a run, a model folder or a hub id; default: the newest run, else the bundled model. Sound
    cards, OSC and MIDI need the extra audiovq[live].
    """
    plays = out is None and device != "null"
    needed = ["sounddevice"] * plays + ["pythonosc"] * bool(osc) + ["mido", "rtmidi"] * bool(midi)
    require("live", *needed, install="pip install 'audiovq[live]'")
    from audiovq import api
    from audiovq.data.codes import check_codes_output
    from audiovq.live.controls import Controls
    from audiovq.live.player import null_device, play, write
    from audiovq.utils import signals
    from audiovq.utils.progress import say

    if save_codes:
        check_codes_output(Path(save_codes), [])
    open_device: Any = null_device
    if plays:
        try:
            from audiovq.live.sound_card import sound_card
        except OSError as error:
            hint = "install it (Debian: apt install libportaudio2), or write to a file or a pipe with --out"
            raise ValueError(f"live: {error}; {hint}") from None
        open_device = partial(sound_card, name=device)
    music = api.Generator.from_pretrained(options.pick_model(model)).live(seed, block_seconds=block, **controls)
    stopped = threading.Event()
    steering = Controls(music, stopped.set)
    with contextlib.ExitStack() as stack:
        if osc:
            from audiovq.live.osc import osc_server

            stack.enter_context(osc_server(steering, osc, osc_host))
            say(f"OSC: listening on {osc_host}, port {osc}")
        if midi:
            from audiovq.live.midi import midi_input

            say(f"MIDI: listening to {stack.enter_context(midi_input(steering, midi))}")
        stack.enter_context(signals.deferred())
        ended = lambda: stopped.is_set() or signals.received() is not None  # noqa: E731
        try:
            if out is None:
                play(music, open_device, buffer, seconds, ended)
            else:
                write(music, out, seconds, ended)
        finally:
            if save_codes and music.frames:
                codes = music.codes()
                codes.save(Path(save_codes))
                say(f"{save_codes}: the codes of the last {codes.seconds:.1f} s")
