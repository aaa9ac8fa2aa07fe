"""The page, built with Gradio: its controls and what they do. The work is done by `Service`."""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by the import: the studio sends no usage data
import gradio as gr
from gradio.themes import Default

from audiovq.api.generator import Generator
from audiovq.studio import views
from audiovq.studio.service import SETTINGS, Job, PieceRequest, Service, Session, Stopped, Takes
from audiovq.studio.uploads import MEGABYTE, Limits, OnProgress
from audiovq.utils.signals import Interrupted

ASSETS = Path(__file__).parent / "assets"
PROGRESS = gr.Progress()
# Queues: music is made one piece at a time; quick steps do not wait for it; some run outside of any queue.
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# A page that is reloaded finds its session again.
READ_TOKEN = "() => [sessionStorage.getItem('audiovq-studio') || '']"
WRITE_TOKEN = "(token) => { sessionStorage.setItem('audiovq-studio', token); }"
SHOW_MARK = "(...mark) => { document.dispatchEvent(new CustomEvent('studio-mark', { detail: mark })); }"
READY = "Press **Make music**. You hear a sketch first; the details follow."
HOW = {  # setting: label, explanation, lowest, highest, step
    "temperature": ("Temperature", "higher is wilder, lower is tamer", 0.1, 2, 0.05),
    "top_p": ("Top-p", "below 1 leaves out unlikely codes", 0.05, 1, 0.01),
    "top_k": ("Top-k", "only this many of the likeliest codes; 0 is all", 0, None, 1),
    "guidance": ("Guidance", "how closely labels, text and melody are followed", 0, 5, 0.1),
}


def player(**more: Any) -> gr.HTML:
    """A player with a picture; its value is one of `views`."""
    html, script, style = ((ASSETS / f"player.{kind}").read_text("utf-8") for kind in ("html", "js", "css"))
    more |= {"html_template": html, "js_on_load": script, "css_template": style}
    return gr.HTML({}, **more)  # type: ignore[arg-type]


def on_progress(progress: gr.Progress) -> OnProgress:
    return lambda share, words: progress(share, desc=words)


def warn(error: Exception) -> str:
    """Show an error in a pop-up, and return it for the page."""
    text = html.escape(str(error))
    gr.Warning(text, duration=15, title="That did not work")
    return f"⚠ {text}"


class Studio:
    """The page of a service; `blocks` is what Gradio serves."""

    def __init__(self, service: Service, model: str):
        self.service, self.n_levels = service, service.n_levels
        self.blocks = gr.Blocks(title="audiovq studio", analytics_enabled=False, delete_cache=(600, 3600))
        with self.blocks:
            self.token = gr.Textbox(visible=False)
            gr.Markdown(f"**audiovq studio** · make music with {html.escape(model)} and change it")
            with gr.Tabs(selected="make") as self.tabs:
                with gr.Tab("Make music", id="make"), gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        self._build_request()
                    with gr.Column(scale=5, min_width=480):
                        self._build_piece()
                with gr.Tab("Use a recording", id="open"), gr.Row():
                    self._build_recording()
            self.piece = [self.empty, self.main, self.files, self.changes, self.tree]
            self.slots = [self.takes_row, *[part for take in self.takes for part in take]]
            self._connect_making()
            self._connect_versions()
            self._connect_recording()
        self.blocks.queue(default_concurrency_limit=1)

    # --- controls -------------------------------------------------------------------------------------

    def _build_request(self) -> None:
        known, limits = self.service.known, self.service.limits
        with gr.Group():
            length = min(20, limits.max_seconds)
            self.seconds = gr.Slider(
                1, limits.max_seconds, length, step=1, label="Length in seconds", elem_id="seconds"
            )
            labels = []
            for name, values in self.service.generator.labels.items():
                choices = [("any", ""), *zip(values, values, strict=True)]
                labels.append(gr.Dropdown(choices, value="", label=name.capitalize()))
            longest = known["text"] or None
            text = gr.Textbox(label="Description", max_length=longest, visible=bool(longest))
            chroma = gr.File(label="Follow the melody of", height=120, visible=known["chroma"])
            with gr.Row():
                counts = list(range(1, limits.max_takes + 1))
                takes = gr.Dropdown(counts, value=1, label="Takes", elem_id="takes", min_width=100)
                seed = gr.Textbox(label="Seed", placeholder="any", elem_id="seed", min_width=100)
        with gr.Accordion("How adventurous (level 0 is the composition, then come details)", open=False):
            settings = self._build_settings(bool(labels or known["text"] or known["chroma"]))
        self.request = [seed, takes, text, chroma, *labels, *settings]  # as `PieceRequest.from_controls`
        with gr.Row():
            self.make = gr.Button("Make music", variant="primary", elem_id="make", interactive=False)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80)
        self.status = gr.Markdown(READY, elem_id="status")
        self.progress = gr.HTML(elem_id="progress", elem_classes="progress")

    def _build_settings(self, guided: bool) -> list[gr.Slider]:
        """A slider for each setting and level, all levels of a setting together."""
        sliders: dict[tuple[str, int], gr.Slider] = {}
        codebook_size = self.service.generator.tokenizer.config.codebook_size
        with gr.Tabs():
            for level, setting in enumerate(self.service.generator.sampling):
                with gr.Tab(f"Level {level}"):
                    for name in SETTINGS:
                        label, info, low, high, step = HOW[name]
                        value, visible = getattr(setting, name), guided or name != "guidance"
                        low, high = min(low, value), max(high or codebook_size, value)
                        sliders[name, level] = gr.Slider(
                            low, high, value, step=step, label=label, info=info, visible=visible
                        )
        return [sliders[name, level] for name in SETTINGS for level in range(self.n_levels)]

    def _build_piece(self) -> None:
        self.takes = []
        with gr.Row(visible=False) as self.takes_row:
            for i in range(1, self.service.limits.max_takes + 1):
                with gr.Column(visible=False, min_width=160) as column:
                    sound = player(elem_id=f"take-{i}")
                    button = gr.Button(f"Choose take {i}", elem_id=f"keep-{i}", size="sm")
                    self.takes.append((column, sound, button))
        self.empty = gr.HTML("Your music appears here. Play it, change it, download it.", elem_id="empty")
        self.main = player(elem_id="main")
        self.files = gr.HTML(elem_id="files")
        with gr.Row(visible=False) as self.changes:
            with gr.Column(scale=4, min_width=300):
                self._build_changes()
            with gr.Column(scale=4, min_width=260):
                self.tree = gr.Radio([], label="Versions: click on one to return to it", elem_id="tree")
                with gr.Row():
                    self.undo = gr.Button("Undo", elem_id="undo", size="sm", min_width=80)
                    self.delete = gr.Button("Delete this version", elem_id="delete", size="sm", min_width=80)

    def _build_changes(self) -> None:
        n, longest = self.n_levels, self.service.limits.max_seconds
        seconds = {"minimum": 0, "maximum": longest}
        with gr.Tabs():
            with gr.Tab("Continue"):
                with gr.Row():
                    self.after = gr.Number(5, label="Seconds after it", elem_id="after", **seconds)
                    self.before = gr.Number(0, label="Seconds before it", elem_id="before", **seconds)
                self.extend = gr.Button("Continue", elem_id="extend")
            with gr.Tab("Replace a part"):
                with gr.Row():
                    self.start = gr.Number(1, label="From second", minimum=0, elem_id="start")
                    self.end = gr.Number(2, label="To second", minimum=0, elem_id="end")
                words = "Number of coarse levels to keep in this part"
                self.keep_within = gr.Slider(0, max(n - 1, 1), 0, step=1, label=words, visible=n > 1)
                self.redraw = gr.Button("Replace this part", elem_id="redraw")
            with gr.Tab("Vary"):
                self.share = gr.Slider(5, 100, 30, step=5, label="How much is replaced, here and there, in %")
                self.vary = gr.Button("Vary", elem_id="vary")
            with gr.Tab("New details", visible=n > 1):
                words = "Number of coarse levels to keep; the finer ones are new"
                self.keep = gr.Slider(1, max(n - 1, 2), 1, step=1, label=words, interactive=n > 2)
                self.rerender = gr.Button("New details", elem_id="rerender")

    def _build_recording(self) -> None:
        limits, n_levels = self.service.limits, self.service.generator.tokenizer.config.n_levels
        with gr.Column(scale=2, min_width=300):
            self.upload = gr.File(label="Drop a recording, or saved codes", elem_id="upload", height=170)
            about = f"Up to {limits.max_upload_mb:g} MB; the first {limits.max_seconds:g} s are used. "
            about += "You hear it as the model does: from level 0 alone, then with each finer level."
            self.about = gr.Markdown(about, elem_id="about")
            self.uploading = gr.HTML(elem_classes="progress")
            self.adopt = gr.Button("Change this recording", elem_id="adopt", visible=False, variant="primary")
        with gr.Column(scale=5, min_width=480):
            self.original = player(elem_id="original")
            self.prefixes = [player(elem_id=f"prefix-{n + 1}") for n in range(n_levels)]

    # --- making music ---------------------------------------------------------------------------------

    def _connect_making(self) -> None:
        service = self.service

        def on_click(button: gr.Button, inputs: list[Any], start: Callable[..., Iterator[Takes]]) -> None:
            """`start` gets the job and the inputs."""

            def run(progress: gr.Progress = PROGRESS, *values: Any) -> Iterator[list[Any]]:
                token, number, *rest = values
                arguments, controls = rest[: len(inputs)], rest[len(inputs) :]

                def begin() -> Iterator[Takes]:
                    if None in arguments:
                        raise ValueError("a field is empty: type a number into it")
                    labels = list(service.generator.labels)
                    request = PieceRequest.from_controls(controls, labels, self.n_levels)
                    job = Job(service.session(token), request, on_progress(progress), number)
                    return start(job, *arguments)

                yield from self._run(begin, token, number)

            # The first step runs at once, so that a request can be stopped while it waits.
            button.click(service.renew_stop, self.token, None, **AT_ONCE).then(
                run,
                [self.token, self.tree, *inputs, *self.request],
                [self.progress, self.status, *self.piece, *self.slots],
                show_progress="full",
                show_progress_on=[self.progress],
                **DEVICE,
            )

        def stop(token: str) -> None:
            service.session(token).stop.set()

        def marked(event: gr.EventData) -> tuple[float, float]:
            return round(event.start, 2), round(event.end, 2)

        on_click(self.make, [self.seconds], service.make)
        on_click(self.extend, [self.before, self.after], service.extend)
        on_click(self.redraw, [self.start, self.end, self.keep_within], service.redraw)
        on_click(self.vary, [self.share], service.vary)
        on_click(self.rerender, [self.keep], service.rerender)
        self.stop.click(stop, self.token, None, **AT_ONCE)
        self.main.mark(marked, None, [self.start, self.end], **AT_ONCE)
        for number in (self.start, self.end):
            number.change(None, [self.start, self.end], None, js=SHOW_MARK)

    def _run(self, begin: Callable[[], Iterator[Takes]], token: str, number: int | None) -> Iterator[list[Any]]:
        """Show each sketch as soon as it can be played, then the finished version."""
        try:
            for takes in begin():
                yield ["", *self._show_sketches(takes)]
            yield ["", *self._show_finished(self.service.session(token))]
        except (Stopped, Interrupted):
            yield ["", *self._step(token, lambda session: number, "Stopped.")]
        except ValueError as error:
            yield ["", *self._step(token, lambda session: number, warn(error))]

    def _show_sketches(self, takes: Takes) -> list[Any]:
        text = f"You hear {takes.n_levels} of {self.n_levels} levels."
        if not takes.versions:
            text += " The next one follows …"
        sounds = [views.sketch_player(path, takes.n_levels, self.n_levels) for path in takes.sounds]
        main = [sounds[0], ""] if len(sounds) == 1 else [gr.skip()] * 2
        return [text, gr.HTML(visible=False), *main, gr.skip(), gr.skip(), *self._show_takes(sounds)]

    def _show_finished(self, session: Session) -> list[Any]:
        takes = session.takes
        text = "Here it is."
        if len(takes) > 1:
            text = f"Here are {len(takes)} takes: choose the one you like best."
        sounds = [views.take_player(take, session.files, i) for i, take in enumerate(takes)]
        return [text, *self._show_version(session, takes[0].number), *self._show_takes(sounds, finished=True)]

    def _step(self, token: str, step: Callable[[Session], int | None], text: str) -> list[Any]:
        """Show the version that `step` returns and a text, or an error."""
        try:
            session = self.service.session(token)
            return [text, *self._show_version(session, step(session)), *self._show_takes([])]
        except ValueError as error:
            return [warn(error), *[gr.skip()] * (len(self.piece) + len(self.slots))]

    def _show_version(self, session: Session, number: int | None) -> list[Any]:
        """The values of `piece` for a version, or for none."""
        choices, session.shown = session.tree.lines(), number
        sound, files = {}, ""
        if number is not None:
            version = session.tree.get(number)
            sound = views.version_player(version, session.files)
            files = views.version_downloads(version, session.files)
        tree = gr.Radio(choices, value=number)
        return [gr.HTML(visible=not choices), sound, files, gr.Row(visible=bool(choices)), tree]

    def _show_takes(self, sounds: list[dict[str, Any]], finished: bool = False) -> list[Any]:
        """The values of `slots`: takes side by side if there are several."""
        several = sounds if len(sounds) > 1 else []
        values: list[Any] = [gr.Row(visible=bool(several))]
        for i in range(len(self.takes)):
            sound = several[i] if i < len(several) else {}
            values += [gr.Column(visible=bool(sound)), sound, gr.Button(interactive=finished)]
        return values

    # --- versions -------------------------------------------------------------------------------------

    def _connect_versions(self) -> None:
        service, outputs = self.service, [self.status, *self.piece, *self.slots]

        def enter(token: str, request: gr.Request) -> list[Any]:
            session = service.enter(token, request.session_hash or "")
            shown = self._show_version(session, session.shown)
            return [session.token, gr.Button(interactive=True), READY, *shown, *self._show_takes([])]

        def leave(request: gr.Request) -> None:
            service.stop(request.session_hash or "")

        def on(event: Any, step: Callable[[Session, Any], int | None], text: str) -> None:
            """`step` gets the session and the version on the page, and returns the version to show."""

            def handle(token: str, number: int | None) -> list[Any]:
                return self._step(token, lambda session: step(session, number), text)

            event(handle, [self.token, self.tree], outputs, show_progress="hidden", **QUICK)

        def choose(i: int) -> Callable[[Session, Any], int]:
            return lambda session, number: session.takes[i].number

        entered = [self.token, self.make, *outputs]
        loaded = self.blocks.load(enter, self.token, entered, js=READ_TOKEN, show_progress="hidden", **QUICK)
        loaded.then(None, self.token, None, js=WRITE_TOKEN)
        self.blocks.unload(leave)
        on(self.tree.input, lambda session, number: number, "Changes start from this version now.")
        on(self.undo.click, lambda session, number: session.tree.parent(number), "One step back.")
        on(self.delete.click, service.delete, "Deleted.")
        for i, (_, _, button) in enumerate(self.takes):
            on(button.click, choose(i), f"Take {i + 1}. The others stay among the versions.")

    # --- recordings -----------------------------------------------------------------------------------

    def _connect_recording(self) -> None:
        service = self.service
        players = [self.original, *self.prefixes]
        outputs = [self.about, self.uploading, *players, self.adopt]

        def open_upload(progress: gr.Progress = PROGRESS, *values: Any) -> Iterator[list[Any]]:
            token, path = values
            no_sound: list[dict[str, Any]] = [{}] * len(self.prefixes)
            try:
                session = service.session(token)
                for recording in service.open(session, Path(path), on_progress(progress)):
                    text, sounds = views.recording_players(recording)
                    sounds = (sounds + no_sound)[: 1 + len(no_sound)]
                    yield [text, "", *sounds, gr.Button(visible=True)]
            except ValueError as error:
                yield [warn(error), "", {}, *no_sound, gr.Button(visible=False)]

        def adopt(token: str) -> list[Any]:
            shown = self._step(token, lambda session: service.adopt(session).number, "You can change it now.")
            return [gr.Tabs(selected="make"), *shown]

        progress = {"show_progress": "full", "show_progress_on": [self.uploading]}
        self.upload.upload(open_upload, [self.token, self.upload], outputs, **progress, **DEVICE)
        self.adopt.click(adopt, self.token, [self.tabs, self.status, *self.piece, *self.slots], **DEVICE)


@contextlib.contextmanager
def open_studio(
    model: Path, limits: Limits, host: str = "127.0.0.1", port: int | None = None, show: bool = False, name: str = ""
) -> Iterator[tuple[str, Service]]:
    """Serve the studio within `with`; gives its address. Its files are deleted afterwards.

    Args:
        port: default the first free one from 7860 on.
        show: open the page in a browser.
        name: of the model on the page; default its folder's.
    Raises:
        ValueError: no such model, or a port that is not free.
    """
    generator = Generator.from_pretrained(model)
    with tempfile.TemporaryDirectory(prefix="audiovq-studio-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        service = Service(generator, Path(folder) / "sessions", limits)
        service.warm_up()
        blocks = Studio(service, name or model.name).blocks
        theme = Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            _, url, _ = blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=show,
                theme=theme,
                css=(ASSETS / "studio.css").read_text("utf-8"),
                allowed_paths=[str(service.folder)],
                max_file_size=int(limits.max_upload_mb * MEGABYTE),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                enable_monitoring=False,
                footer_links=[],
            )
        except OSError as error:
            ports, reason = port or "7860 and following", str(error).partition(". ")[0]  # then gradio's own advice
            advice = "choose another --port; another program may use it"
            raise ValueError(f"--host {host}, --port {ports}: cannot be opened ({reason}); {advice}") from None
        try:
            yield url, service
        finally:
            blocks.close(verbose=False)
