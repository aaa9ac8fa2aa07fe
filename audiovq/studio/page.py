"""The page, by Gradio: what is on it and what its buttons do. All work is the workbench's."""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: nobody is told that somebody makes music
import gradio as gr
from gradio.themes import Default

from audiovq.api import Generator
from audiovq.studio import views
from audiovq.studio.service import Service, Session, Stopped, Takes
from audiovq.studio.uploads import MEGABYTE, Limits
from audiovq.utils.signals import Interrupted

ASSETS = Path(__file__).parent / "assets"
PROGRESS = gr.Progress()
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
LOOK: dict[str, Any] = {"concurrency_id": "look", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
RECALL = "() => [sessionStorage.getItem('audiovq-studio') || '']"  # a page that is loaded again finds its desk
REMEMBER = "(token) => { sessionStorage.setItem('audiovq-studio', token); }"
SHOW_MARK = "(...mark) => { document.dispatchEvent(new CustomEvent('studio-mark', { detail: mark })); }"
READY = "Press **Make music**: you hear a sketch first, and the details follow."


def player(**more: Any) -> gr.HTML:
    """A player of our own; its value is one of `views`."""
    template, script, style = ((ASSETS / f"player.{kind}").read_text("utf-8") for kind in ("html", "js", "css"))
    return gr.HTML({}, html_template=template, js_on_load=script, css_template=style, **more)  # type: ignore[arg-type]


def warn(error: Exception) -> str:
    """Say it where it is seen at once; returns it for where it stays."""
    words = html.escape(str(error))
    gr.Warning(words, duration=15, title="That did not work")
    return f"⚠ {words}"


class Studio:
    """One page over one workbench; `blocks` is what Gradio serves."""

    def __init__(self, bench: Service, model: str):
        self.bench, self.n_levels = bench, bench.n_levels
        with gr.Blocks(title="audiovq studio", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            self.token = gr.Textbox(visible=False)
            gr.Markdown(f"**audiovq studio** · make music with {html.escape(model)}, and change it until you like it")
            with gr.Tabs(selected="make") as self.tabs:
                with gr.Tab("Make music", id="make"), gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        self._build_wishes()
                    with gr.Column(scale=5, min_width=480):
                        self._build_desk()
                with gr.Tab("Take a recording apart", id="open"):
                    self._build_recording()
            self.shown = [self.empty, self.main, self.files, self.workshop, self.tree]
            self.slots = [self.takes_row, *[part for take in self.takes for part in take]]
            self._wire_making()
            self._wire_versions()
            self._wire_recording()
        self.blocks.queue(default_concurrency_limit=1)

    # --- what is on the page ------------------------------------------------------------------------------------------

    def _build_wishes(self) -> None:
        bench, known, longest = self.bench, self.bench.known, self.bench.limits.max_seconds
        with gr.Group():
            self.seconds = gr.Slider(1, longest, min(20, longest), step=1, label="Length in seconds", elem_id="seconds")
            labels = [
                gr.Dropdown([("any", ""), *((value, value) for value in values)], value="", label=name.capitalize())
                for name, values in bench.generator.labels.items()
            ]
            text = gr.Textbox(label="In words", max_length=known["text"] or None, visible=bool(known["text"]))
            chroma = gr.File(label="Follow the melody of", height=120, visible=known["chroma"])
            with gr.Row():
                counts = list(range(1, bench.limits.max_takes + 1))
                takes = gr.Dropdown(counts, value=1, label="Takes", elem_id="takes", min_width=100)
                seed = gr.Textbox(label="Seed", placeholder="any", elem_id="seed", min_width=100)
        with gr.Accordion("Taste: tame or wild (level 1 is the composition)", open=False):
            settings = self._build_settings(bool(labels or known["text"] or known["chroma"]))
        self.wishes = [seed, takes, text, chroma, *labels, *settings]
        with gr.Row():
            self.make = gr.Button("Make music", variant="primary", elem_id="make", interactive=False)  # until `enter`
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80)
        self.status = gr.Markdown(READY, elem_id="status")
        self.progress = gr.HTML(elem_id="progress", elem_classes="progress")

    def _build_settings(self, guided: bool) -> list[gr.Slider]:
        """A slider for each setting of each level, in the order of `views.wish`."""
        picks = self.bench.generator.picks
        size = self.bench.generator.tokenizer.config.codebook_size
        kinds = {
            "temperature": ("Temperature", "above 1 wilder, below 1 tamer", 0.1, 2, 0.05),
            "top_p": ("Top-p", "below 1, the unlikeliest are left out", 0.05, 1, 0.01),
            "top_k": ("Top-k", "only so many of the likeliest; 0 is all", 0, size, 1),
            "guidance": ("Guidance", "how strongly wishes are followed", 0, 5, 0.1),
        }
        found: dict[str, list[gr.Slider]] = {name: [] for name in views.SETTINGS}
        with gr.Tabs():
            for level, pick in enumerate(picks[: self.n_levels]):
                with gr.Tab(f"Level {level + 1}"):
                    for name in views.SETTINGS:
                        title, words, low, high, step = kinds[name]
                        value, visible = getattr(pick, name), guided or name != "guidance"
                        slider = gr.Slider(
                            min(low, value),
                            max(high, value),
                            value,
                            step=step,
                            label=title,
                            info=words,
                            visible=visible,
                        )
                        found[name].append(slider)
        return [slider for name in views.SETTINGS for slider in found[name]]

    def _build_desk(self) -> None:
        with gr.Row(visible=False) as self.takes_row:
            self.takes = []
            for i in range(1, self.bench.limits.max_takes + 1):
                with gr.Column(visible=False, min_width=160) as column:
                    sound, button = (
                        player(elem_id=f"take-{i}"),
                        gr.Button(f"Keep take {i}", elem_id=f"keep-{i}", size="sm"),
                    )
                    self.takes.append((column, sound, button))
        self.empty = gr.HTML(
            "What you make appears here, to play, to change and to keep.", elem_id="empty", visible=True
        )
        self.main = player(elem_id="main")
        self.files = gr.HTML(elem_id="files")
        with gr.Row(visible=False) as self.workshop:
            with gr.Column(scale=4, min_width=300):
                self._build_changes()
            with gr.Column(scale=4, min_width=260):
                self.tree = gr.Radio([], label="Versions: click on one to go back to it", elem_id="tree")
                with gr.Row():
                    self.undo = gr.Button("Undo", elem_id="undo", size="sm", min_width=80)
                    self.forget = gr.Button("Forget this version", elem_id="forget", size="sm", min_width=80)

    def _build_changes(self) -> None:
        n, longest = self.n_levels, self.bench.limits.max_seconds
        with gr.Tabs():
            with gr.Tab("Continue"):
                with gr.Row():
                    self.after = gr.Number(5, label="Seconds after it", minimum=0, maximum=longest, elem_id="after")
                    self.before = gr.Number(0, label="Seconds before it", minimum=0, maximum=longest, elem_id="before")
                self.extend = gr.Button("Continue", elem_id="extend")
            with gr.Tab("Mend"):
                with gr.Row():
                    self.start = gr.Number(1, label="From second", minimum=0, elem_id="start")
                    self.end = gr.Number(2, label="To second", minimum=0, elem_id="end")
                self.keep_within = gr.Slider(
                    0, max(n - 1, 1), 0, step=1, label="Levels to keep even there", visible=n > 1
                )
                self.redraw = gr.Button("Play this stretch anew", elem_id="redraw")
            with gr.Tab("Vary"):
                self.share = gr.Slider(5, 100, 30, step=5, label="How much may change, %: stretches here and there")
                self.vary = gr.Button("Vary", elem_id="vary")
            with gr.Tab("New details", visible=n > 1):
                self.keep = gr.Slider(
                    1, max(n - 1, 2), 1, step=1, label="Levels to keep; the finer ones are new", interactive=n > 2
                )
                self.rerender = gr.Button("New details", elem_id="rerender")

    def _build_recording(self) -> None:
        limits, n_levels = self.bench.limits, self.bench.generator.tokenizer.config.n_levels
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.upload = gr.File(label="Drop a recording, or codes that you kept", elem_id="upload", height=170)
                self.heard = gr.Markdown(
                    f"Up to {limits.max_upload_mb:g} MB; the first {limits.max_seconds:g} s are used. It becomes codes, and you "
                    "hear what one level makes of it, what two make, and so on.",
                    elem_id="heard",
                )
                self.uploading = gr.HTML(elem_classes="progress")
                self.adopt = gr.Button("Go on from it", elem_id="adopt", visible=False, variant="primary")
                self.kept = gr.HTML(elem_id="recording-files")
            with gr.Column(scale=5, min_width=480):
                self.original = player(elem_id="original")
                self.prefixes = [player(elem_id=f"prefix-{k + 1}") for k in range(n_levels)]

    # --- what its buttons do ------------------------------------------------------------------------------------------

    def _wire_making(self) -> None:
        bench = self.bench

        def on_click(button: gr.Button, inputs: list[Any], start: Callable[..., Iterator[Takes]]) -> None:
            """`start` is called with the desk, the version that is shown, the wish, the inputs and who is told."""
            first = 2 + len(inputs)

            def run(progress: gr.Progress = PROGRESS, *values: Any) -> Iterator[list[Any]]:
                token, number = values[:2]

                def begin() -> Iterator[Takes]:
                    if None in values[2:first]:
                        raise ValueError("a field is empty: type a number into it")
                    wish, tell = views.wish(bench, values[first:]), lambda share, words: progress(share, desc=words)
                    return start(bench.desk(token), number, wish, *values[2:first], tell)

                yield from self._run(begin, token, number)

            button.click(bench.want, self.token, None, **AT_ONCE).then(  # at once: it can be stopped while it waits
                run, [self.token, self.tree, *inputs, *self.wishes], [self.progress, self.status, *self.shown, *self.slots],
                show_progress="full", show_progress_on=[self.progress], **DEVICE,
            )  # fmt: skip

        on_click(self.make, [self.seconds], lambda desk, number, *rest: bench.make(desk, *rest))
        on_click(self.extend, [self.before, self.after], bench.extend)
        on_click(self.redraw, [self.start, self.end, self.keep_within], bench.redraw)
        on_click(
            self.vary,
            [self.share],
            lambda desk, number, wish, percent, tell: bench.vary(desk, number, wish, percent / 100, tell),
        )
        on_click(self.rerender, [self.keep], bench.rerender)

        def stop(token: str) -> None:
            bench.desk(token).stop.set()

        def marked(event: gr.EventData) -> tuple[float, float]:
            return round(event.start, 2), round(event.end, 2)

        self.stop.click(stop, self.token, None, **AT_ONCE)
        self.main.mark(marked, None, [self.start, self.end], **AT_ONCE)
        for number in (self.start, self.end):
            number.change(None, [self.start, self.end], None, js=SHOW_MARK)

    def _run(self, begin: Callable[[], Iterator[Takes]], token: str, number: int | None) -> Iterator[list[Any]]:
        """Show what can be heard, as soon as it can be."""
        try:
            for takes in begin():
                yield ["", *self._on_the_way(takes)]
            yield ["", *self._finished(self.bench.desk(token))]
        except (Stopped, Interrupted):
            yield ["", *self._step(token, lambda desk: number, "Stopped.")]
        except ValueError as error:
            yield ["", *self._step(token, lambda desk: number, warn(error))]

    def _step(self, token: str, step: Callable[[Session], int | None], words: str) -> list[Any]:
        """Show the version that `step` gives, and `words`; or what is wrong."""
        try:
            desk = self.bench.desk(token)
            return [words, *self._show(desk, step(desk)), *self._slots([])]
        except ValueError as error:
            return [warn(error), *[gr.skip()] * (len(self.shown) + len(self.slots))]

    def _finished(self, desk: Session) -> list[Any]:
        words = "Here it is."
        if len(desk.takes) > 1:
            words = f"Here are {len(desk.takes)} takes: keep the one that you like best."
        sounds = [views.take(desk, i) for i in range(len(desk.takes))]
        return [words, *self._show(desk, desk.takes[0].number), *self._slots(sounds, finished=True)]

    def _on_the_way(self, takes: Takes) -> list[Any]:
        words = f"You hear {takes.n_levels} of {self.n_levels} levels."
        words += " The next one is on its way …" * (not takes.versions)
        sounds = [views.sketch(path, takes.n_levels, self.n_levels) for path in takes.sounds]
        alone = [sounds[0], ""] if len(sounds) == 1 else [gr.skip()] * 2
        main = [gr.HTML(visible=False), *alone, gr.skip(), gr.skip()]
        return [words, *main, *self._slots(sounds)]

    def _show(self, desk: Session, number: int | None) -> list[Any]:
        """For `shown`: a version, or that there is none."""
        choices = desk.tree.lines()
        some = bool(choices)
        desk.shown = number
        sound, files = ({}, "") if number is None else (views.version(desk, number), views.version_files(desk, number))
        return [gr.HTML(visible=not some), sound, files, gr.Row(visible=some), gr.Radio(choices, value=number)]

    def _slots(self, sounds: list[dict[str, Any]], finished: bool = False) -> list[Any]:
        """For `slots`: takes side by side, if they are several."""
        several = sounds if len(sounds) > 1 else []
        slots: list[Any] = [gr.Row(visible=bool(several))]
        for i in range(len(self.takes)):
            there = i < len(several)
            slots += [gr.Column(visible=there), several[i] if there else {}, gr.Button(interactive=finished)]
        return slots

    def _wire_versions(self) -> None:
        outputs = [self.status, *self.shown, *self.slots]

        def enter(token: str, request: gr.Request) -> list[Any]:
            desk = self.bench.enter(token, request.session_hash or "")
            return [desk.token, gr.Button(interactive=True), READY, *self._show(desk, desk.shown), *self._slots([])]

        def leave(request: gr.Request) -> None:
            self.bench.stop(request.session_hash or "")

        def on(event: Any, step: Callable[[Session, Any], int | None], words: str) -> None:
            """`step` gives the version to show then."""

            def handle(token: str, number: int | None) -> list[Any]:
                return self._step(token, lambda desk: step(desk, number), words)

            event(handle, [self.token, self.tree], outputs, show_progress="hidden", **LOOK)

        self.blocks.load(
            enter, self.token, [self.token, self.make, *outputs], js=RECALL, show_progress="hidden", **LOOK
        ).then(None, self.token, None, js=REMEMBER)
        self.blocks.unload(leave)
        on(self.tree.input, lambda desk, number: number, "Back to this one. What you do now grows from here.")
        on(self.undo.click, lambda desk, number: desk.tree.before(number), "One step back. Nothing is lost.")
        on(self.forget.click, self.bench.forget, "Forgotten.")
        for i, (_, _, button) in enumerate(self.takes):
            on(
                button.click,
                lambda desk, _, i=i: desk.takes[i].number,
                f"Take {i + 1}; the others stay among the versions.",
            )

    def _wire_recording(self) -> None:
        def take_apart(progress: gr.Progress = PROGRESS, *values: Any) -> Iterator[list[Any]]:
            token, path = values
            try:
                desk = self.bench.desk(token)
                for it in self.bench.open(desk, Path(path), lambda share, words: progress(share, desc=words)):
                    words, sounds = views.recording(it)
                    sounds += [{}] * (1 + len(self.prefixes) - len(sounds))
                    files = views.downloads({"Codes": it.file}, "recording")
                    yield [words, "", *sounds, gr.Button(visible=True), files]
            except ValueError as error:
                yield [warn(error), "", {}, *[{}] * len(self.prefixes), gr.Button(visible=False), ""]

        def adopt(token: str) -> list[Any]:
            words = "Continue it, mend it, vary it."
            return [gr.Tabs(selected="make"), *self._step(token, lambda desk: self.bench.adopt(desk).number, words)]

        found = [self.heard, self.uploading, self.original, *self.prefixes, self.adopt, self.kept]
        self.upload.upload(
            take_apart,
            [self.token, self.upload],
            found,
            show_progress="full",
            show_progress_on=[self.uploading],
            **DEVICE,
        )
        self.adopt.click(adopt, self.token, [self.tabs, self.status, *self.shown, *self.slots], **DEVICE)


@contextlib.contextmanager
def open_studio(
    model: Path, limits: Limits, host: str = "127.0.0.1", port: int | None = None, show: bool = False, name: str = ""
) -> Iterator[tuple[str, Service]]:
    """Within `with` the studio is open; gives its address. All files that it makes are gone afterwards.

    Args:
        port: default the first free one from 7860 on.
        show: open it in a browser.
        name: of the model, for people; default its folder's.
    Raises:
        ValueError: no model there, or a port that is taken.
    """
    generator = Generator.from_pretrained(model)
    with tempfile.TemporaryDirectory(prefix="audiovq-studio-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        bench = Service(generator, Path(folder) / "desks", limits)
        bench.warm_up()
        blocks = Studio(bench, name or model.name).blocks
        theme = Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            _, url, _ = blocks.launch(
                server_name=host, server_port=port, inbrowser=show, prevent_thread_lock=True, quiet=True, share=False,
                ssr_mode=False, footer_links=[], theme=theme, css=(ASSETS / "studio.css").read_text("utf-8"),
                allowed_paths=[str(bench.folder)], max_file_size=int(limits.max_upload_mb * MEGABYTE), pwa=False,
                enable_monitoring=False, mcp_server=False,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(
                f"--host {host}, --port {port or '7860 and following'}: cannot be opened ({error})"
            ) from None
        try:
            yield url, bench
        finally:
            blocks.close(verbose=False)
