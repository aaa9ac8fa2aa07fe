"""`audiovq live`: music without end, steered while it sounds."""

import contextlib
from pathlib import Path
from typing import Any

from click import FloatRange, IntRange, argument, command, option

from audiovq.cli import options
from audiovq.utils.environment import require

LEVELS = "one value or one per level"
OUT_HELP = "Write here instead of playing: a WAV or FLAC file, or - for standard output."
DEVICE_HELP = "Sound card: a part of its name, or its number; `null` plays to nowhere. Default: the system's."
BLOCK_HELP = "Audio decoded at once. More needs less computing, and changes are heard later."
BUFFER_HELP = "Music made ahead. More survives interruptions, and changes are heard later."


@command()
@argument("model", type=options.FOLDER, required=False)
@option("--seed", type=IntRange(min=0), default=0, show_default=True, help="The same seed gives the same music.")
@option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Such as timbre=piano (repeatable).")
@option("--text", default="", help="A caption or lyrics, for a model trained with them.")
@option("--temperature", callback=options.number_list(float), help=f"Above 1 wilder, below 1 tamer; {LEVELS}.")
@option("--top-k", callback=options.number_list(int), help=f"Only the k likeliest codes, 0 for all; {LEVELS}.")
@option("--top-p", callback=options.number_list(float), help=f"Only the likeliest codes, up to this; {LEVELS}.")
@option("--guidance", callback=options.number_list(float), help=f"How closely labels are followed; {LEVELS}.")
@option("--device", metavar="NAME", help=DEVICE_HELP)
@option("--out", type=options.FILE, metavar="FILE", help=OUT_HELP)
@option("--raw", is_flag=True, help="With --out -: 16-bit samples without a WAV header.")
@option("--seconds", type=options.POSITIVE, help="Stop after so long; default never. A file needs it.")
@option("--osc", type=IntRange(1, 65535), metavar="PORT", help="Listen to OSC messages on this UDP port.")
@option("--osc-host", default="127.0.0.1", show_default=True, help="Address for --osc; 0.0.0.0 admits everybody.")
@option("--midi", metavar="PORT", help="Listen to a MIDI controller: a part of the port's name.")
@option("--buffer", type=FloatRange(0.02, 60), default=0.5, show_default=True, metavar="SECONDS", help=BUFFER_HELP)
@option("--block", type=FloatRange(0, 60), default=0.0, show_default=True, metavar="SECONDS", help=BLOCK_HELP)
@option("--precision", default="auto", show_default=True, help="fp32, fp16 (CPU) or bf16 (GPU).")
@option("--save-codes", type=options.FILE, metavar="FILE", help="At the end, write the codes of the last ten minutes.")
def live(
    model: str | None, seed: int, labels: tuple[str, ...], device: str | None, osc: int | None, osc_host: str,
    midi: str | None, block: float, precision: str, text: str, temperature: Any, top_k: Any, top_p: Any,
    guidance: Any, **values: Any,
) -> None:  # fmt: skip
    """Play music without end from MODEL, and change it while it sounds.

    MODEL is a run, a model folder or a hub id; default: the newest run, else the bundled model. Sound cards, OSC and
    MIDI need the extra audiovq[live].
    """
    plays = values["out"] is None and device != "null"
    needed = ["sounddevice"] * plays + ["pythonosc"] * bool(osc) + ["mido", "rtmidi"] * bool(midi)
    require("live", *needed, install="pip install 'audiovq[live]'")
    from audiovq import api
    from audiovq.live.controls import Controls
    from audiovq.live.player import null_device
    from audiovq.live.session import LiveOptions, Session
    from audiovq.utils.progress import say

    chosen = LiveOptions(**values)
    chosen.check()
    if plays:
        try:
            from audiovq.live.sound_card import sound_card
        except OSError as error:
            hint = "install it (Debian: apt install libportaudio2), or write to a file or a pipe with --out"
            raise ValueError(f"live: {error}; {hint}") from None
    generator = api.Generator.from_pretrained(Path(options.pick_model(model)))
    controls = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance, "text": text}
    wanted = options.parse_labels(labels)
    music = generator.live(seed, labels=wanted, precision=precision, block_seconds=block, **controls)
    session = Session(music, chosen)
    steering = Controls(music, session.stop)
    with contextlib.ExitStack() as stack:
        if osc:
            from audiovq.live.osc import osc_server

            stack.enter_context(osc_server(steering, osc, osc_host))
            say(f"OSC: listening on {osc_host}, port {osc}")
        if midi:
            from audiovq.live.midi import midi_input

            say(f"MIDI: listening to {stack.enter_context(midi_input(steering, midi))}")
        session.run(lambda player: sound_card(player, device) if plays else null_device(player))
