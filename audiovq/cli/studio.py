"""`audiovq studio`: the page for making music."""

import time
import webbrowser
from pathlib import Path

from click import FloatRange, IntRange, argument, command, option

from audiovq.cli.options import FOLDER, pick_model
from audiovq.utils.environment import require

HOST_HELP = "Address to listen on; 0.0.0.0 admits everybody who can reach this machine."
ABOVE_0 = FloatRange(0.1)


@command()
@argument("run", type=FOLDER, required=False)
@option("--host", default="127.0.0.1", show_default=True, help=HOST_HELP)
@option("--port", type=IntRange(1, 65535), help="Default: the first free port from 7860 on.")
@option("--allow-host", "names", multiple=True, metavar="NAME", help="A name that it is reached by, as by a proxy.")
@option("--password", envvar="AUDIOVQ_PASSWORD", help="Asked of every visitor; also from $AUDIOVQ_PASSWORD.")
@option("--no-password", is_flag=True, help="With another --host: admit everybody.")
@option("--projects", type=Path, help="Folder of the projects. Default: that of the user's data.")
@option("--max-seconds", type=FloatRange(1, 3600), default=120, show_default=True, help="Longest piece.")
@option("--max-upload", type=ABOVE_0, default=50, show_default=True, metavar="MB", help="Largest upload.")
@option("--quota", type=ABOVE_0, default=2000, show_default=True, metavar="MB", help="Projects of a visitor.")
@option("--open", "show", is_flag=True, help="Open the page in a browser.")
def studio(
    run: str | None, host: str, port: int | None, names: tuple[str, ...], password: str | None, no_password: bool,
    projects: Path | None, max_seconds: float, max_upload: float, quota: float, show: bool,
) -> None:  # fmt: skip
    """Open a page for making music with RUN: a run, a model folder, a hub id or `default`, the bundled model.

    Without RUN it is the newest run, else the bundled model. Needs the extra audiovq[studio].
    """
    require("studio", "fastapi", "uvicorn", "websockets", "platformdirs", install="pip install 'audiovq[studio]'")
    import platformdirs

    from audiovq.pretrained.locate import bundled_model
    from audiovq.studio.requests import Limits
    from audiovq.studio.security import Access, is_loopback
    from audiovq.studio.server import open_studio
    from audiovq.utils import signals
    from audiovq.utils.progress import say

    if not is_loopback(host) and not password and not no_password:
        advice = "give a --password (or set AUDIOVQ_PASSWORD), or --no-password to admit everybody"
        raise ValueError(f"--host {host}: others could use the studio; {advice}")
    if no_password:
        password = None
        if not is_loopback(host):
            say(f"everybody who can reach {host} can use this studio: there is no password")

    folder = pick_model(run)
    name = "the bundled model" if folder == bundled_model() else run or str(folder)
    place = projects or Path(platformdirs.user_data_dir("audiovq", appauthor=False)) / "projects"
    limits = Limits(max_seconds=max_seconds, max_upload_mb=max_upload, quota_mb=quota, total_mb=10 * quota)
    access = Access(host, password or None, [name.lower() for name in names])
    with open_studio(folder, name, place, limits, access, port) as (url, opened):
        say(f"the studio is open: {url} (Ctrl-C closes it; projects are kept in {place})")
        if show:
            webbrowser.open(url)
        with signals.deferred():
            while signals.received() is None:
                if opened.loading.done():
                    opened.loading.result()  # a model that cannot be loaded ends the command
                time.sleep(0.2)
