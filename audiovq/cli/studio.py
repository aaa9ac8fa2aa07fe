"""`studio`: the page for making music."""

from __future__ import annotations

import importlib.util
import time

import click

from audiovq.cli.group import main
from audiovq.cli.options import FOLDER


@main.command()
@click.argument("run", type=FOLDER, required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets in all who reach this machine.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default the first free one from 7860 on.")
@click.option("--max-seconds", type=click.FloatRange(1, 3600), default=120, show_default=True, help="Of a piece.")
@click.option(
    "--max-upload", type=click.FloatRange(0.1), default=50, show_default=True, metavar="MB", help="Of a file."
)
@click.option("--open", "show", is_flag=True, help="Open it in a browser.")
def studio(run: str | None, host: str, port: int | None, max_seconds: float, max_upload: float, show: bool) -> None:
    """Open a page for making music with RUN (a run, a model folder or a hub id; default the bundled model); needs audiovq[studio]."""
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
        say(f"the studio is open: {url} (Ctrl-C closes it; what you want to keep, download before)")
        with signals.deferred():
            while signals.received() is None:
                time.sleep(0.2)
