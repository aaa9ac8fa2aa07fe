"""Controls over OSC (Open Sound Control, UDP). Needs the extra `audiovq[live]`."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_packet import OscPacket, ParseError
from pythonosc.osc_server import BlockingOSCUDPServer

from audiovq.live.controls import Controls

PREFIX = "/audiovq/"


@contextlib.contextmanager
def osc_server(controls: Controls, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Listens while the block runs; gives the port, of which 0 is any free one. Every address is
    `/audiovq/` and a control, see `Controls.message`. Raises ValueError if the port is taken."""

    class Follow(Dispatcher):
        def call_handlers_for_packet(self, data: bytes, client_address: tuple[str, int]) -> list[Any]:
            """Every message acts at once, also those of a bundle for later: waiting would hold up all others."""
            try:
                messages = [timed.message for timed in OscPacket(data).messages]
            except (ParseError, ValueError):
                controls.report(f"not changed: expected an OSC message, found {data!r:.60}")
                return []
            for message in messages:
                if message.address.startswith(PREFIX):
                    controls.message(message.address.removeprefix(PREFIX), message.params)
                else:
                    expected = f"expected {PREFIX}… such as {PREFIX}temperature"
                    controls.report(f"not changed: OSC address {message.address:.60}: {expected}")
            return []

    try:
        server = BlockingOSCUDPServer((host, port), Follow())
    except OSError as error:
        raise ValueError(f"osc: {host}, port {port}: {error.strerror or error}; choose another --osc") from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    with server:
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
