"""Sound cards, through PortAudio. Needs the extra `audiovq[live]`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import sounddevice

from audiovq.live.player import Player
from audiovq.utils.progress import listed


@contextlib.contextmanager
def sound_card(player: Player, name: str | None) -> Iterator[None]:
    """Plays on a device while the block runs: `name` is that of an output device, or a part of it, or its number;
    default the system's. Raises ValueError for no such device, or one that does not take this music."""

    def callback(out: Any, n: int, when: Any, status: Any) -> None:
        out[:] = player.take(n)

    options: Any = {"device": int(name) if name and name.isdecimal() else name, "channels": player.channels}
    with contextlib.ExitStack() as stack:
        try:
            stream = sounddevice.OutputStream(player.rate, dtype="float32", latency="low", callback=callback, **options)
            stack.enter_context(stream)
        except (sounddevice.PortAudioError, ValueError) as error:
            outputs: Any = sounddevice.query_devices()
            known = listed([found["name"] for found in outputs if found["max_output_channels"]], name or "")
            raise ValueError(f"device {name or 'of the system'}: {error}; expected one of: {known}") from None
        yield
