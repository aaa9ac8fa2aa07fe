"""Controls from a MIDI controller. Needs the extra `audiovq[live]`."""

import contextlib
from collections.abc import Iterator

import mido

from audiovq.live.controls import Controls
from audiovq.utils.progress import listed


@contextlib.contextmanager
def midi_input(controls: Controls, name: str) -> Iterator[str]:
    """Listens to a port while the block runs; gives its name. `name` is that of an input port, or a part of
    it. Raises ValueError for no such port, or no MIDI on this machine."""
    try:
        ports: list[str] = mido.get_input_names()  # type: ignore[attr-defined]
        chosen = next((port for port in ports if name.lower() in port.lower()), None)
        if chosen is None:
            raise ValueError(f"midi: no port {name:.60}; expected one of: {listed(ports, name)}")
        opened = mido.open_input(chosen, callback=controls.midi)  # type: ignore[attr-defined]
    except (OSError, SystemError, ImportError) as error:  # python-rtmidi's are SystemErrors
        raise ValueError(f"midi: {error}; leave out --midi, or see that the system has MIDI ports") from None
    with opened:
        yield chosen
