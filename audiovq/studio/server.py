"""The server: REST interface and files of the page, on a thread. The model, and with it torch, loads meanwhile."""

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from filelock import FileLock
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

import audiovq
from audiovq.studio import requests as bodies
from audiovq.studio.jobs import Job, Queue
from audiovq.studio.projects import ARRIVING, Library, Project
from audiovq.studio.requests import MB, JobRequest, Limits, ProjectChange, Refused, sentence
from audiovq.studio.security import LARGEST_BODY, Access, Guard, error
from audiovq.utils.files import write_text

if TYPE_CHECKING:
    from audiovq.studio.engine import Engine

PACKAGE = Path(__file__).parent.parent
TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".opus": "audio/ogg", ".mp3": "audio/mpeg"}
BUNDLED = PACKAGE / "studio" / "bundled.json"  # the bundled model's description, by benchmarks/bundle.py
FIRST_PORT, N_PORTS = 7860, 40
Json = dict[str, Any]


class Studio:
    known: Json | None = None  # the model's description from an earlier start or the package, if it is still the same
    loading: Future["Engine"]  # the model, which begins to load when the server runs

    def __init__(self, library: Library, limits: Limits, access: Access):
        self.library, self.limits, self.access = library, limits, access
        self.queue = Queue(limits)

    @property
    def engine(self) -> "Engine":
        """Waits for the model."""
        return self.loading.result()

    def model(self, early: bool = True) -> Json:
        """The model as it describes itself; `early`: as the last start or the package knew it, until it is loaded."""
        facts = (early and not self.loading.done() and self.known) or self.engine.describe()
        return facts | {"limits": vars(self.limits)}

    def load(self, folder: Path, name: str, sounds: Path) -> None:
        """Load a model in a thread, and keep its description for the next start."""
        files = sorted([*folder.glob("*/config.json"), *folder.glob("README.md")])  # what the description depends on
        key = hashlib.sha256(repr((name, [path.read_bytes() for path in files])).encode()).hexdigest()
        memory, dated = self.library.root / "model.json", f"{audiovq.__version__} {key}"
        for file, wanted in ((BUNDLED, key), (memory, dated)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
                found = json.loads(file.read_text("utf-8"))
                self.known = found["model"] if found["key"] == wanted else self.known

        def work() -> "Engine":
            module = importlib.import_module("audiovq.studio.engine")  # and torch, while the page is served already
            engine = module.Engine(folder, name, self.library, self.limits, sounds)
            with contextlib.suppress(ValueError):  # a full disk
                write_text(memory, json.dumps({"key": dated, "model": engine.describe()}))
            return engine

        self.loading = ThreadPoolExecutor(1, "model").submit(work)

    def new_project(self, request: Request, name: str | None) -> Project:
        """A project of the visitor that is not in the library yet."""
        return Project(name=name or "Untitled", owner=request.state.visitor, tokenizer_hash=self.model()["hash"])

    def jobs(self, project: Project) -> list[Json]:
        return [self.queue.describe(job) for job in self.queue.of_project(project.id)]

    def describe(self, project: Project) -> Json:
        """All that its owner may see."""
        with self.library.lock:
            facts = project.model_dump(mode="json", exclude={"owner", "format", "next_number"})
            return facts | {"jobs": self.jobs(project)}

    @contextlib.asynccontextmanager
    async def upload(self, request: Request, most_mb: float) -> AsyncIterator[Path]:
        """The body of a request as a file, within the block. Raises Refused if it is too large, or stalls."""
        length = int(request.headers.get("content-length", -1))  # the server holds the client to it
        if not length:
            raise Refused("the upload is empty")
        if length < 0:
            raise Refused("expected the length of the file first (Content-Length)", 411)
        if length > most_mb * MB:
            raise Refused(f"the file is too large; files may have up to {most_mb:g} MB here", 413)
        await asyncio.to_thread(self.library.check_room, request.state.visitor, length)
        stream, end = request.stream(), time.monotonic() + self.limits.slowest_upload_seconds
        with tempfile.TemporaryDirectory(prefix=ARRIVING, dir=self.library.root) as folder:
            path = Path(folder, "file")
            try:
                with path.open("wb") as file:
                    file.truncate(length)  # what others upload meanwhile must find room beside it
                    patience = self.limits.stall_seconds
                    while block := await asyncio.wait_for(anext(stream, b""), patience):
                        file.write(block)
                        patience = min(self.limits.stall_seconds, end - time.monotonic())
            except asyncio.TimeoutError:
                raise Refused("the upload stopped to arrive; try it again", 408) from None
            except ClientDisconnect:
                raise Refused("the upload was interrupted", 400) from None
            yield path


def make_app(studio: Studio) -> FastAPI:
    app = FastAPI(title="audiovq studio", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, access=studio.access, stall_seconds=studio.limits.stall_seconds)
    for problem in (ValueError, OSError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(problem, _answer_problem)
    _add_projects(app, studio)
    _add_versions(app, studio)
    _add_jobs(app, studio)
    _add_live(app, studio)
    app.mount("/assets", StaticFiles(directory=PACKAGE / "studio" / "assets"))
    app.mount("/player", StaticFiles(directory=PACKAGE / "report" / "template"))

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PACKAGE / "studio" / "assets" / "index.html")

    return app


async def _answer_problem(request: Request, problem: Exception) -> JSONResponse:
    """One sentence for every problem."""
    if isinstance(problem, RequestValidationError):
        return error(sentence(problem), 422)
    if isinstance(problem, HTTPException):
        return error(str(problem.detail), problem.status_code)
    if isinstance(problem, OSError):
        return error(f"a file cannot be read or written ({problem.strerror})", 500)
    if isinstance(problem, ValueError):
        return error(sentence(problem), problem.status if isinstance(problem, Refused) else 400)
    return error(f"internal error: {type(problem).__name__}", 500)


def _found(studio: Studio) -> Any:
    """A dependency: the project of a path, if the visitor may see it."""

    def find(project_id: str, request: Request) -> Project:
        return studio.library.get(project_id, request.state.visitor, studio.model()["hash"])

    return Depends(find)


def _add_projects(app: FastAPI, studio: Studio) -> None:
    library, found = studio.library, _found(studio)

    @app.get("/api/model")
    def model(early: bool = False) -> Json:
        """The model and the limits of the studio; waits until it is loaded, or is `early`, see `Studio.model`."""
        return studio.model(early) | {"local": studio.access.is_local}

    @app.get("/api/projects")
    def projects(request: Request) -> list[Json]:
        return [project.summary for project in library.mine(request.state.visitor, studio.model()["hash"])]

    @app.post("/api/projects", status_code=201)
    def create(request: Request, new: ProjectChange | None = None) -> Json:
        return studio.describe(library.create(studio.new_project(request, new.name if new else None)))

    @app.post("/api/projects/import", status_code=201)
    async def import_project(request: Request) -> Json:
        """The body is a file from /api/projects/ID/file."""
        async with studio.upload(request, studio.limits.quota_mb) as path:
            project = await asyncio.to_thread(lambda: studio.engine.import_(path, request.state.visitor))
        return studio.describe(project)

    @app.get("/api/projects/{project_id}")
    def show(project: Project = found) -> Json:
        return studio.describe(project)

    @app.patch("/api/projects/{project_id}")
    def change(new: ProjectChange, project: Project = found) -> Json:
        with library.changing(project):
            if new.shown is not None:
                project.version(new.shown)
            for name, value in new.model_dump(exclude_none=True).items():
                setattr(project, name, value)
        return studio.describe(project)

    @app.delete("/api/projects/{project_id}")
    def delete(project: Project = found) -> Json:
        for job in studio.queue.of_project(project.id):
            studio.queue.stop(job)
        library.delete(project)
        return {}

    @app.get("/api/projects/{project_id}/file", response_class=FileResponse)
    def download(project: Project = found) -> FileResponse:
        path = studio.engine.sounds.folder / f"{secrets.token_hex(8)}.zip"
        studio.engine.export(project, path)
        name, done = file_name(project.name, ".zip"), BackgroundTask(path.unlink)
        return FileResponse(path, media_type="application/zip", filename=name, background=done)

    @app.get("/api/projects/{project_id}/jobs")
    def jobs(project: Project = found) -> Json:
        """The jobs of a project, and the time of its last change."""
        return {"changed_at": project.changed_at, "jobs": studio.jobs(project)}


def _add_versions(app: FastAPI, studio: Studio) -> None:
    library, found = studio.library, _found(studio)
    place = "/api/projects/{project_id}/versions/{number}"

    @app.patch(place)
    def change(number: int, new: bodies.VersionChange, project: Project = found) -> Json:
        with library.changing(project):
            version = project.version(number)
            for name, value in new.model_dump(exclude_none=True).items():
                setattr(version, name, value)
        return studio.describe(project)

    @app.delete(place)
    def delete(number: int, project: Project = found) -> Json:
        """Delete a version and all that was made from it."""
        library.delete_version(project, number)
        return studio.describe(project)

    @app.get(f"{place}/sound", response_class=FileResponse)
    def sound(number: int, export: Annotated[bodies.Export, Query()], project: Project = found) -> FileResponse:
        """A version as it sounds."""
        version = project.version(number)
        path = studio.engine.sound(project, version, export)
        name = file_name(f"{project.name} {number} {version.title}", path.suffix) if export.download else None
        return FileResponse(path, media_type=TYPES[path.suffix], filename=name)

    @app.get(f"{place}/codes", response_class=FileResponse)
    def codes(number: int, project: Project = found, download: bool = False) -> FileResponse:
        version = project.version(number)
        name = file_name(f"{project.name} {number} {version.title}", ".codes") if download else None
        return FileResponse(library.codes_path(project, number), media_type="application/octet-stream", filename=name)

    @app.get(f"{place}/levels")
    def levels(number: int, project: Project = found) -> Json:
        codes = studio.engine.codes(project, number)
        pairs = zip(codes.hop_lengths, codes.levels, strict=False)
        rows = [{"hop_length": hop, "codes": level.tolist()} for hop, level in pairs]
        return {"levels": rows, "codebook_size": codes.codebook_size}

    @app.get("/api/projects/{project_id}/recordings/{name}/sound", response_class=FileResponse)
    def recording(name: str, project: Project = found) -> FileResponse:
        path = studio.engine.sounds.recording(project, project.recording(name))
        return FileResponse(path, media_type=TYPES[path.suffix])


def _add_jobs(app: FastAPI, studio: Studio) -> None:
    library, queue, found = studio.library, studio.queue, _found(studio)

    def start(job: Job) -> Json:
        return queue.describe(queue.put(job))

    def mine(job_id: str, request: Request) -> Job:
        return queue.get(job_id, request.state.visitor)

    my_job = Depends(mine)

    @app.post("/api/pieces", status_code=202)
    def piece(request: Request, new: bodies.NewPiece) -> Json:
        """A new piece in a project of its own."""
        project = studio.new_project(request, new.name)
        job = studio.engine.job(project, JobRequest(kind="make", **new.model_dump(exclude={"name"})))
        library.create(project)
        try:
            started = start(job)
        except Refused:
            library.delete(project)
            raise
        return {"project": studio.describe(project), "job": started}

    @app.post("/api/projects/{project_id}/jobs", status_code=202)
    def make(new: JobRequest, project: Project = found) -> Json:
        return start(studio.engine.job(project, new))

    @app.post("/api/projects/{project_id}/recordings", status_code=202)
    async def open_recording(
        request: Request, name: Annotated[str, Query(min_length=1, max_length=200)], project: Project = found
    ) -> Json:
        """The body is a sound file, or a .codes file of this model; it becomes a version."""
        library.check_versions(project, 1)
        suffix = Path(name).suffix.lower()
        suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ".audio"
        path = library.folder(project) / "recordings" / f"incoming-{secrets.token_hex(8)}{suffix}"
        async with studio.upload(request, studio.limits.max_upload_mb) as arrived:
            arrived.replace(path)
        try:
            library.check_room(project.owner)  # counts what arrived meanwhile, too
            return start(studio.engine.open(project, path, name))
        except Refused:
            path.unlink()
            raise

    @app.get("/api/jobs/{job_id}")
    def job(job: Job = my_job) -> Json:
        return queue.describe(job)

    @app.delete("/api/jobs/{job_id}")
    def stop(job: Job = my_job) -> Json:
        queue.stop(job)
        return queue.describe(job)


def _add_live(app: FastAPI, studio: Studio) -> None:
    @app.websocket("/api/live")
    async def live(socket: WebSocket) -> None:
        """Sound without end, see `docs/how-to/studio-rest.md`."""
        await (await asyncio.to_thread(lambda: studio.engine)).stage.play(socket, socket.state.visitor)

    @app.post("/api/live/keep", status_code=201)
    def keep(request: Request, seconds: Annotated[float, Query(gt=0)] = 60, project: str = "") -> Json:
        """Make the last seconds of the visitor's music a version, by default in a new project."""
        library, engine, visitor = studio.library, studio.engine, request.state.visitor
        codes = engine.stage.codes(visitor, min(seconds, studio.limits.max_seconds))
        new = None if project else studio.new_project(request, "Live")
        place = library.create(new) if new else library.get(project, visitor, engine.hash)
        engine.keep(place, codes)
        return studio.describe(place)


def file_name(title: str, suffix: str) -> str:
    """A name that every system takes."""
    plain = unicodedata.normalize("NFC", title)
    plain = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else " " for c in plain)
    return (" ".join(plain.split()).strip(". ")[:100] or "audiovq") + suffix


@contextlib.contextmanager
def open_studio(
    folder: Path, name: str, projects: Path, limits: Limits, access: Access | None = None, port: int | None = None
) -> Iterator[tuple[str, Studio]]:
    """Serve a studio of a model, with the name that the user knows, within the block, at a port or the first free one
    from 7860 on; gives its address and the studio. ValueError if the port or the projects are taken, or no such address."""
    access = access or Access("127.0.0.1")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(access.host, port))
        sounds = stack.enter_context(tempfile.TemporaryDirectory(prefix="audiovq-studio-"))
        try:  # two studios would not know of each other's changes
            stack.enter_context(FileLock(projects / ".lock", timeout=0))
        except OSError as error:  # a Timeout has no strerror
            reason = error.strerror or "another studio uses them"
            raise ValueError(f"{projects}: {reason}; choose another folder with --projects") from None
        studio = Studio(Library(projects, limits), limits, access)
        stack.callback(studio.queue.close)
        options: Json = {"log_level": "warning", "access_log": False, "lifespan": "off", "server_header": False}
        options |= {"timeout_graceful_shutdown": 1, "timeout_keep_alive": 30, "limit_concurrency": 500}
        server = uvicorn.Server(uvicorn.Config(make_app(studio), ws_max_size=LARGEST_BODY, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        studio.load(folder, name, Path(sounds))
        try:
            host = "127.0.0.1" if access.host in ("0.0.0.0", "::") else access.host  # that a browser here opens
            yield f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}", studio
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket on a port, or on the first free one. Raises ValueError if there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port else range(FIRST_PORT, FIRST_PORT + N_PORTS):
        try:
            return socket.create_server((host, number), family=family)
        except socket.gaierror:
            raise ValueError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from None
        except OSError as error:
            reason = error
    where = f"port {port}" if port else f"the ports {FIRST_PORT} to {FIRST_PORT + N_PORTS - 1}"
    raise ValueError(f"{where} of {host} cannot be used ({os.strerror(reason.errno or 0)}); choose another with --port")
