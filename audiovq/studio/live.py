"""Live: music without end for the page, made as it is played. One visitor plays at a time."""

import asyncio
import contextlib
import threading
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from audiovq.api import Generator, Live
from audiovq.data.codes import Codes
from audiovq.studio.requests import Refused, Turn, sentence
from audiovq.utils.progress import say

IDLE_SECONDS = 30.0  # without a sample being played
ENOUGH = 1.1  # seconds of music that are made in one; with less the sound will pause
LEAVING = 10  # tenths of a second that a visitor who leaves may take to be gone
SHARE = 0.1  # of the last block in the pace
Json = dict[str, Any]


class Session:
    """The music of one page. A thread asks for `block` after `block`; the page says what it has played."""

    def __init__(self, generator: Generator, owner: str, turn: Turn):
        self.live: Live = generator.live()
        self.owner, self.blocks = owner, iter(self.live)
        self.n_wanted = self.live.sample_rate // 5
        self.n_sent = self.n_played = self.underruns = 0
        self.ended = self.is_slow = False
        self.changed = threading.Condition()
        self.pace = ENOUGH  # seconds of music that this machine makes in one, of late
        self.update(turn)

    def update(self, turn: Turn) -> None:
        """Follow a message of the page. Raises ValueError for a control that cannot be set."""
        if turn.set:
            self.live.set(**turn.set)
        if turn.restart:
            self.live.restart()
        with self.changed:
            if turn.buffer is not None:
                self.n_wanted = round(turn.buffer * self.live.sample_rate)
            self.n_played = max(self.n_played, min(turn.played, self.n_sent))
            self.is_slow = self.is_slow or (turn.underruns > self.underruns and self.pace < ENOUGH)
            self.underruns = max(self.underruns, turn.underruns)
            self.changed.notify_all()

    @property
    def facts(self) -> Json:
        live, buffer, state = self.live, self.n_wanted / self.live.sample_rate, self.live.drawn.states[0]
        facts = {"controls": live.controls, "latency": live.latency_seconds, "levels": live.n_levels, "buffer": buffer}
        notes, at = state.request.notes, state.start + live.drawn.n_out - 1  # of the code that was drawn last
        return facts | {"frame": 0 if notes is None else int(notes[at % len(notes)])}

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def block(self) -> bytes | None:
        """The next sound, float32 [channels, n], as soon as the page has room for it; None at the end."""
        with self.changed:
            has_room = lambda: self.ended or self.n_sent - self.n_played < self.n_wanted  # noqa: E731
            if not self.changed.wait_for(has_room, IDLE_SECONDS) or self.ended:
                return None
        if self.is_slow:
            self.live.lighten()
            self.n_wanted = max(self.n_wanted, 2 * self.live.decoder.windows.step)  # a block, and one at work
            self.is_slow, self.pace = False, ENOUGH
        began = time.monotonic()
        sound = next(self.blocks)
        pace = sound.shape[1] / self.live.sample_rate / max(time.monotonic() - began, 1e-6)
        self.pace += SHARE * (pace - self.pace)
        self.n_sent += sound.shape[1]
        return sound.contiguous().numpy().tobytes()

    async def send(self, socket: WebSocket) -> None:
        """Blocks, each after the facts if they have changed; at the end, why."""
        shown: Json = {}
        try:
            while (block := await asyncio.to_thread(self.block)) is not None:
                if self.facts != shown:
                    shown = self.facts
                    await socket.send_json(shown)
                await socket.send_bytes(block)
            await socket.send_json({"ended": f"Nothing was played for {IDLE_SECONDS:g} s, so the music has ended."})
        except ValueError as error:
            await socket.send_json({"ended": sentence(error)})

    async def receive(self, socket: WebSocket) -> None:
        """Turns of the page; what cannot be followed is answered by a sentence, and changes nothing."""
        while True:
            try:
                self.update(Turn.model_validate_json(await socket.receive_text()))
            except (ValueError, TypeError) as error:
                await socket.send_json({"error": sentence(error)})


class Stage:
    """Where one visitor plays at a time."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.session: Session | None = None
        self.opening = asyncio.Lock()

    async def play(self, socket: WebSocket, owner: str) -> None:
        """Serve a page until it leaves. Its first message is a turn with all settings."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, KeyError):  # it left, or sends something else
            try:
                text = await asyncio.wait_for(socket.receive_text(), IDLE_SECONDS)
                async with self.opening:
                    for _ in range(LEAVING):
                        if self.session and not self.session.ended:
                            await asyncio.sleep(0.1)
                    if self.session and not self.session.ended:
                        whose = "you play" if self.session.owner == owner else "somebody else plays"
                        raise Refused(f"{whose} in another window already, and only one can play at a time")
                    turn = Turn.model_validate_json(text)
                    self.session = session = await asyncio.to_thread(Session, self.generator, owner, turn)
            except (ValueError, TypeError, asyncio.TimeoutError) as error:
                await socket.send_json({"ended": sentence(error)})
                await socket.close()
                return
            tasks = [asyncio.create_task(work(socket)) for work in (session.send, session.receive)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                session.end()
                for task in tasks:
                    task.cancel()
                for problem in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(problem, Exception) and not isinstance(problem, WebSocketDisconnect):
                        say(f"live: {type(problem).__name__}: {problem}")
            await socket.close()

    def codes(self, owner: str, seconds: float) -> Codes:
        """The codes that a visitor's music had last, also after its end."""
        if self.session is None or self.session.owner != owner:
            raise Refused("there is no music of yours to keep; play first", 409)
        return self.session.live.codes(seconds)
