"""Controls over OSC (Open Sound Control, UDP). Needs the extra `audiovq[live]`."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import BlockingOSCUDPServer

from audiovq.live.controls import Controls

PREFIX = "/audiovq/"


@contextlib.contextmanager
def osc_server(controls: Controls, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Listens while the block runs; gives the port, of which 0 is any free one. Every address is
    `/audiovq/` and a control, see `Controls.message`. Raises ValueError if the port is taken."""

    def handle(address: str, *values: Any) -> None:
        if address.startswith(PREFIX):
            controls.message(address.removeprefix(PREFIX), values)
        else:
            controls.report(f"not changed: OSC address {address:.60}: expected {PREFIX}… such as {PREFIX}temperature")

    dispatcher = Dispatcher()
    dispatcher.set_default_handler(handle)
    try:
        server = BlockingOSCUDPServer((host, port), dispatcher)
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
