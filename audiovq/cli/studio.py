"""`audiovq studio`: the page for making music."""

import importlib.util
import time

from click import FloatRange, IntRange, argument, command, option

from audiovq.cli.options import FOLDER

HOST_HELP = "Address to listen on; 0.0.0.0 admits everybody who can reach this machine."
UPLOAD = FloatRange(0.1)


@command()
@argument("run", type=FOLDER, required=False)
@option("--host", default="127.0.0.1", show_default=True, help=HOST_HELP)
@option("--port", type=IntRange(1, 65535), help="Default: the first free port from 7860 on.")
@option("--max-seconds", type=FloatRange(1, 3600), default=120, show_default=True, help="Longest piece.")
@option("--max-upload", type=UPLOAD, default=50, show_default=True, metavar="MB", help="Largest upload.")
@option("--open", "show", is_flag=True, help="Open the page in a browser.")
def studio(run: str | None, host: str, port: int | None, max_seconds: float, max_upload: float, show: bool) -> None:
    """Open a page for making music with RUN: a run, a model folder or a hub id (default: the bundled model).

    Needs the extra audiovq[studio].
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("studio: the package gradio is missing; pip install 'audiovq[studio]'")
    from audiovq.utils.progress import say

    say("opening the studio …")
    from audiovq import api
    from audiovq.studio.page import open_studio
    from audiovq.studio.uploads import Limits
    from audiovq.utils import signals

    limits = Limits(max_seconds=max_seconds, max_upload_mb=max_upload)
    model, name = (api.resolve_model(run), run) if run else (api.bundled_model(), "the bundled model")
    with open_studio(model, limits, host, port, show, name) as (url, _):
        say(f"the studio is open: {url} (Ctrl-C closes it; download the pieces you want to keep first)")
        with signals.deferred():
            while signals.received() is None:
                time.sleep(0.2)
