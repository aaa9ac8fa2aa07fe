"""The studio's server as other programs, several people and attackers meet it: real requests over a real socket."""

import contextlib
import dataclasses
import importlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli, tones
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from audiovq import Codes
from audiovq.api import Generator
from audiovq.pretrained.locate import bundled_model
from audiovq.studio.projects import ARRIVING
from audiovq.studio.requests import Limits
from audiovq.studio.security import HEADERS, Access
from audiovq.studio.server import BUNDLED, file_name, open_studio

LIMITS = Limits(max_seconds=8, max_upload_mb=0.2, max_takes=2, quota_mb=1, stall_seconds=0.5, max_projects=1000)
Url = str


@contextlib.contextmanager
def served(run: Path, projects: Path, access: Access | None = None) -> Iterator[Url]:
    with open_studio(run, "tiny", projects, LIMITS, access) as (url, studio):
        studio.loading.result(60)
        yield url


@pytest.fixture(scope="module")
def url(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Url]:
    """A studio on one's own machine."""
    with served(tiny_run, tmp_path_factory.mktemp("projects")) as found:
        yield found


@pytest.fixture(scope="module")
def open_url(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Url]:
    """A studio for everybody who can reach the machine."""
    with served(tiny_run, tmp_path_factory.mktemp("projects"), Access("0.0.0.0", names=["music.example"])) as found:
        yield found


@pytest.fixture
def client(url: Url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


def create(client: httpx.Client, name: str = "Untitled") -> str:
    answer = client.post("/api/projects", json={"name": name})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def finish(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(3000):
        job = client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.01)
    raise AssertionError(job)


def make(client: httpx.Client, project: str, **request: Any) -> list[int]:
    body = {"kind": "make", "seconds": 1, "seed": 1} | request
    answer = client.post(f"/api/projects/{project}/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job = finish(client, answer.json())
    assert job["state"] == "done", job
    return job["versions"]


def refused(answer: httpx.Response, status: int, words: str) -> None:
    """One sentence, and the right status."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


# --- the interface ----------------------------------------------------------------------------------------------------


def test_a_piece_from_a_request_to_its_sound(client: httpx.Client, tiny_run: Path, tmp_path: Path) -> None:
    model = client.get("/api/model").json()
    assert (model["name"], model["sample_rate"], model["local"]) == ("tiny", 8000, True)
    assert model["levels"][0] == {"hop_length": 256, "code_rate": 31.25, "highest": None}
    assert model["labels"] == {"genre": ["folk", "rock"]}
    assert model["settings"]["temperature"] == [1.0, 1.0, 1.0]
    assert model["limits"] == dataclasses.asdict(LIMITS)
    answer = client.post("/api/pieces", json={"seconds": 1.5, "seed": 3, "labels": {"genre": "rock"}, "name": "Mine"})
    assert answer.status_code == 202
    project, job = answer.json()["project"], answer.json()["job"]
    assert (project["name"], project["jobs"][0]["id"]) == ("Mine", job["id"])
    assert finish(client, job)["versions"] == [1]
    project = client.get(f"/api/projects/{project['id']}").json()
    version = project["versions"][0]
    assert (version["seed"], version["labels"], version["seconds"]) == (3, {"genre": "rock"}, 1.5)
    place = f"/api/projects/{project['id']}/versions/1"
    sound = client.get(f"{place}/sound")
    (tmp_path / "x.wav").write_bytes(sound.content)
    assert soundfile.info(tmp_path / "x.wav").frames == 12000
    part = client.get(f"{place}/sound", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, sound.content[100:200])
    levels = client.get(f"{place}/levels").json()
    engine_codes = torch.tensor(levels["levels"][0]["codes"])
    assert (levels["codebook_size"], engine_codes.shape) == (16, (47,))
    listed = client.get("/api/projects").json()[0]
    assert (listed["id"], listed["n_versions"], listed["seconds"]) == (project["id"], 1, 1.5)
    for form, kind in (("wav", "wav"), ("flac", "flac"), ("opus", "ogg"), ("mp3", "mpeg")):
        download = client.get(f"{place}/sound", params={"format": form, "download": 1, "lufs": -14})
        assert download.headers["content-type"] == f"audio/{kind}"
        assert f"Mine%201%20new%20piece.{form}" in download.headers["content-disposition"]
    codes = client.get(f"{place}/codes", params={"download": 1})
    (tmp_path / "x.codes").write_bytes(codes.content)
    assert "x.codes" in cli("info", tmp_path / "x.codes").output


def test_projects_are_renamed_starred_copied_and_deleted(client: httpx.Client) -> None:
    project = create(client, "First")
    first, second = make(client, project, takes=2)
    changed = client.patch(f"/api/projects/{project}", json={"name": "<b>Ω</b>", "starred": True, "shown": second})
    assert {k: changed.json()[k] for k in ("name", "starred", "shown")} == {
        "name": "<b>Ω</b>", "starred": True, "shown": second
    }  # fmt: skip
    client.patch(f"/api/projects/{project}/versions/{first}", json={"title": "best", "starred": True})
    whole = client.get(f"/api/projects/{project}/file")
    assert "%20b%20%CE%A9%20%20b" in whole.headers["content-disposition"] or "Ω" not in whole.text
    copy = client.post("/api/projects/import", content=whole.content)
    assert copy.status_code == 201
    assert [v["title"] for v in copy.json()["versions"]] == ["best", "new piece, take 2"]
    rest = client.delete(f"/api/projects/{project}/versions/{first}").json()
    assert [v["number"] for v in rest["versions"]] == [second]
    assert client.delete(f"/api/projects/{project}").json() == {}
    refused(client.get(f"/api/projects/{project}"), 404, "no such project")
    assert client.get(f"/api/projects/{copy.json()['id']}").json()["name"] == "<b>Ω</b>"


def test_a_recording_becomes_a_version(client: httpx.Client, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", tones(2, 16000), 16000)
    project = create(client)
    content = (tmp_path / "x.flac").read_bytes()
    answer = client.post(f"/api/projects/{project}/recordings", params={"name": "My tune.flac"}, content=content)
    assert (answer.status_code, answer.json()["kind"]) == (202, "open")
    assert finish(client, answer.json())["state"] == "done"
    found = client.get(f"/api/projects/{project}").json()
    [recording], [version] = found["recordings"], found["versions"]
    assert (recording["name"], recording["sample_rate"], version["title"]) == ("My tune.flac", 16000, "My tune.flac")
    sound = client.get(f"/api/projects/{project}/recordings/{recording['id']}/sound")
    assert sound.content == client.get(f"/api/projects/{project}/versions/1/sound").content
    bad = client.post(f"/api/projects/{project}/recordings", params={"name": "x.mp3"}, content=b"<script>")
    job = finish(client, bad.json())
    assert (job["state"], job["error"].startswith("x.mp3: not audio")) == ("failed", True)


def test_a_project_says_its_jobs_and_when_it_changed(client: httpx.Client) -> None:
    project = create(client)
    place = f"/api/projects/{project}/jobs"
    before = client.get(place).json()
    assert before["jobs"] == []
    assert client.get(place).json() == before
    [number] = make(client, project)
    after = client.get(place).json()
    assert after["changed_at"] == client.get(f"/api/projects/{project}").json()["changed_at"] > before["changed_at"]
    assert [(job["state"], job["versions"], job["progress"]) for job in after["jobs"]] == [("done", [number], 1.0)]


def test_waiting_jobs_know_their_place_and_stop_at_once(client: httpx.Client) -> None:
    project = create(client)
    request = {"kind": "make", "seconds": 8, "takes": 2}
    jobs = [client.post(f"/api/projects/{project}/jobs", json=request).json() for _ in range(8)]
    listed = client.get(f"/api/projects/{project}/jobs").json()["jobs"]
    places = [job["place"] for job in listed if job["state"] in ("waiting", "running")]
    assert len(places) > 4
    assert places in (list(range(len(places))), list(range(1, len(places) + 1)))
    assert client.delete(f"/api/jobs/{jobs[-1]['id']}").json()["state"] == "stopped"
    for job in jobs[::-1]:
        client.delete(f"/api/jobs/{job['id']}")
    assert {finish(client, job)["state"] for job in jobs[4:]} == {"stopped"}


@pytest.mark.parametrize(("path", "body", "status", "words"), [
    ("pieces", {"seconds": 99}, 400, "up to 8 s long"), ("pieces", {}, 422, "seconds: Field required"),
    ("pieces", {"seconds": "long"}, 422, "seconds: Input should be a valid number"),
    ("pieces", {"seconds": 1, "seed": -1}, 422, "seed"), ("pieces", {"seconds": 1, "tempo": 3}, 422, "tempo"),
    ("pieces", {"seconds": 1, "labels": {"genre": "jazz"}}, 400, "expected one of: folk, rock"),
    ("projects/0000000000000000/jobs", {"kind": "make"}, 404, "no such project"),
    ("nowhere", {}, 404, "Not Found"), ("projects", {"name": "x" * 201}, 422, "name"),
])  # fmt: skip
def test_impossible_requests_get_one_sentence(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    before = client.get("/api/projects").json()
    refused(client.post(f"/api/{path}", json=body), status, words)
    assert client.get("/api/projects").json() == before


def test_files_that_are_no_json_are_refused(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"[" * 100_000, b"\xff", b"NaN", b'{"seconds": NaN}', b'{"seconds": 1e999}'):
        answer = client.post("/api/pieces", content=content, headers=headers)
        refused(answer, answer.status_code, "")
        assert answer.status_code in (400, 422)


def test_openapi_describes_the_interface(client: httpx.Client) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    assert {"/api/model", "/api/pieces", "/api/projects/{project_id}/jobs"} <= set(paths)


# --- strangers --------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers_that_protect(client: httpx.Client) -> None:
    for path in ("/api/model", "/nowhere", "/player/player.js", "/api/projects/../../x"):
        answer = client.get(path)
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1", "[x", ""])
def test_foreign_hosts_are_refused(client: httpx.Client, host: str) -> None:
    refused(client.get("/api/projects", headers={"Host": host}), 403, "use the address that it printed")


def test_one_studio_at_a_time_uses_a_folder_of_projects(tiny_run: Path, tmp_path: Path) -> None:
    projects = tmp_path / "projects"
    with served(tiny_run, projects) as url:
        name = httpx.post(f"{url}/api/projects", json={"name": "kept"}).json()["name"]
        arriving = projects / f"{ARRIVING}upload"
        arriving.mkdir()
        with pytest.raises(ValueError, match="another studio uses them; choose another"), served(tiny_run, projects):
            pass
        file = next(projects.glob("*/project.json"))
        with pytest.raises(ValueError, match=f"{file}: .*; choose another folder"), served(tiny_run, file):
            pass
        assert arriving.is_dir()  # the second has not tidied up what the first receives
    with served(tiny_run, projects) as url:
        assert [project["name"] for project in httpx.get(f"{url}/api/projects").json()] == [name]
    assert not arriving.exists()


def test_names_and_addresses_of_an_open_studio(open_url: Url) -> None:
    with httpx.Client(base_url=open_url) as client:
        for host, status in (("192.0.2.1:80", 200), ("music.example", 200), (socket.gethostname(), 200),
                             ("evil.example", 403), ("[::1]:7860", 200)):  # fmt: skip
            assert client.get("/api/projects", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_other_pages_cannot_change_anything(client: httpx.Client, origin: str) -> None:
    before = client.get("/api/projects").json()
    for method, path in (("POST", "/api/projects"), ("POST", "/api/projects/import"), ("DELETE", "/api/projects/x")):
        answer = client.request(method, path, headers={"Origin": origin, "Content-Type": "application/json"})
        refused(answer, 403, "another page")
    own = str(client.base_url).rstrip("/")
    assert client.get("/api/projects").json() == before
    assert client.post("/api/projects", json={}, headers={"Origin": own}).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_forms_cannot_change_anything(client: httpx.Client, kind: str) -> None:
    refused(client.post("/api/projects", content=b'{"name": "x"}', headers={"Content-Type": kind}), 415, "json")


@pytest.mark.parametrize("path", [
    "/assets/../server.py", "/assets/%2e%2e/server.py", "/player/..%2f..%2f..%2fpyproject.toml", "/assets//etc/passwd",
    "/api/projects/..%2f..%2fx", "/api/projects/../../etc", "/api/projects/x/recordings/..%2f..%2fproject.json/sound",
])  # fmt: skip
def test_no_path_leads_out(client: httpx.Client, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
        raw.sendall(request)
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert answer.split()[1] in (b"404", b"405")
    assert b"import" not in answer.split(b"\r\n\r\n", 1)[1]


def test_large_bodies_are_refused(client: httpx.Client) -> None:
    name = json.dumps({"name": "x" * (1 << 20)})
    headers = {"Content-Type": "application/json"}
    refused(client.post("/api/projects", content=name, headers=headers), 413, "at most 1 MB")
    chunks = (b" " * 65536 for _ in range(100))
    refused(client.post("/api/projects", content=chunks, headers=headers), 413, "at most 1 MB")


def test_uploads_are_limited_while_they_arrive(client: httpx.Client) -> None:
    project = create(client)
    place = f"/api/projects/{project}/recordings"
    refused(client.post(place, params={"name": "x.wav"}, content=bytes(300_000)), 413, "up to 0.2 MB")
    chunks = (bytes(65536) for _ in range(10))  # the length is not announced
    refused(client.post(place, params={"name": "x.wav"}, content=chunks), 411, "the length of the file")
    refused(client.post(place, params={"name": "x.wav"}, content=b""), 400, "empty")
    refused(client.post(place, params={"name": ""}, content=b"x"), 422, "name")
    assert client.get(f"/api/projects/{project}").json()["versions"] == []


def test_the_quota_is_named_when_it_is_reached(open_url: Url, tmp_path: Path) -> None:
    with httpx.Client(base_url=open_url) as client, httpx.Client(base_url=open_url) as other:
        client.get("/api/projects")
        project = create(client)
        noise = torch.randn(90_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).numpy() * 0.3
        soundfile.write(tmp_path / "noise.wav", noise, 48000)
        content, n_opened = (tmp_path / "noise.wav").read_bytes(), 0
        while True:
            answer = client.post(f"/api/projects/{project}/recordings?name=noise.wav", content=content)
            if answer.status_code != 202:
                break
            n_opened += finish(client, answer.json())["state"] == "done"
        refused(answer, 413, "MB of at most 1 MB; delete some of them")
        assert n_opened == 5  # of 0.18 MB each
        assert len(client.get(f"/api/projects/{project}").json()["versions"]) == 5  # nothing is deleted for it
        other.get("/api/projects")
        create(other)  # has its own


def test_stalled_requests_are_dropped(client: httpx.Client) -> None:
    project = create(client)
    for path in (f"/api/projects/{project}/recordings?name=x.wav", "/api/projects"):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
            raw.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
            assert b" 408 " in raw.recv(1000)


def test_one_visitor_cannot_touch_the_work_of_another(open_url: Url) -> None:
    with httpx.Client(base_url=open_url, timeout=60) as mine, httpx.Client(base_url=open_url) as yours:
        for client in (mine, yours):
            cookie = client.get("/api/projects").headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
        project = create(mine)
        make(mine, project)
        job = mine.post(f"/api/projects/{project}/jobs", json={"kind": "make", "seconds": 8}).json()
        place = f"/api/projects/{project}"
        for method, path in (("GET", place), ("DELETE", place), ("GET", f"{place}/file"), ("GET", f"{place}/jobs"),
                             ("GET", f"{place}/versions/1/sound"), ("DELETE", f"{place}/versions/1")):  # fmt: skip
            refused(yours.request(method, path), 404, "no such project")
        refused(yours.patch(place, json={"name": "stolen"}), 404, "no such project")
        refused(yours.post(f"{place}/recordings?name=x.wav", content=b"x"), 404, "no such project")
        for method in ("GET", "DELETE"):
            refused(yours.request(method, f"/api/jobs/{job['id']}"), 404, "no such job")
        assert yours.get("/api/projects").json() == []
        with httpx.Client(base_url=open_url) as others:
            for _ in range(150):  # many visits of others take nothing away
                others.get("/api/projects")
                others.cookies.clear()
        assert finish(mine, job)["state"] == "done"
        assert len(mine.get(place).json()["versions"]) == 2


def test_a_password_protects_everything(tiny_run: Path, tmp_path: Path) -> None:
    with served(tiny_run, tmp_path, Access("0.0.0.0", "päss<word")) as url, httpx.Client(base_url=url) as client:
        assert client.get("/").headers["location"] == "login"
        for path in ("/api/model", "/api/projects", "/assets/studio.js", "/player/player.js", "/api/openapi.json"):
            refused(client.get(path), 401, "enter the password")
        refused(client.post("/api/pieces", json={"seconds": 1}), 401, "enter the password")
        for path in ("/api/live", "/login"):
            with pytest.raises(InvalidStatus):
                connect(url.replace("http", "ws") + path).__enter__()
        page = client.get("/login")
        assert 'type="password"' in page.text
        wrong = client.post("/login", data={"password": "guess"})
        assert (wrong.status_code, "wrong" in wrong.text) == (403, True)
        again = client.post("/login", data={"password": "päss<word"})  # too soon after a failure
        assert (again.status_code, "Try again in" in again.text) == (429, True)
        refused(client.get("/api/model", headers={"Cookie": "audiovq-session=made up"}), 401, "enter the password")
        time.sleep(1.1)
        entered = client.post("/login", data={"password": "päss<word"}, headers={"Origin": url})
        assert (entered.status_code, entered.headers["location"]) == (303, "./")
        assert client.get("/api/model").json()["local"] is False
        refused(
            client.post("/login", data={"password": "x"}, headers={"Origin": "http://evil.example"}), 403, "another"
        )


def test_each_failure_makes_the_next_try_wait_longer() -> None:
    access, waits = Access("0.0.0.0", "secret"), []
    for _ in range(9):
        access.enter("1.2.3.4", "guess")
        count, until = access.failures["1.2.3.4"]
        waits.append(round(until - time.monotonic()))
        access.failures["1.2.3.4"] = (count, 0.0)  # as if it had waited
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    session, _ = access.enter("5.6.7.8", "secret")  # others are not slowed down
    assert session in access.sessions
    assert access.enter("1.2.3.4", "secret")[0] in access.sessions


def test_names_of_files_have_no_riddles() -> None:
    assert file_name("a/b\\c: <d>\n\x07?", ".wav") == "a b c d.wav"
    assert file_name("..", ".wav") == "audiovq.wav"
    assert file_name("ä" * 300, ".wav") == "ä" * 100 + ".wav"


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_taken_port_and_an_impossible_host_are_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("studio", "--port", port, "--projects", tmp_path)
    assert_one_line_error(result, f"port {port} of 127.0.0.1 cannot be used", "--port")
    result = cli("studio", "--host", "192.0.2.1", "--no-password", "--projects", tmp_path)
    assert_one_line_error(result, "192.0.2.1", "cannot be used")


def test_others_need_a_password_or_an_explicit_permission(tmp_path: Path) -> None:
    result = cli("studio", "--host", "0.0.0.0", "--projects", tmp_path)
    assert_one_line_error(result, "--password", "AUDIOVQ_PASSWORD", "--no-password")


def test_a_model_that_cannot_be_loaded_ends_the_command(tmp_path: Path) -> None:
    assert_one_line_error(cli("studio", tmp_path, "--projects", tmp_path / "projects"), "no trained prior there")


def test_the_next_start_knows_the_model_before_it_is_loaded(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, projects, go, load = tmp_path / "run", tmp_path / "projects", threading.Event(), importlib.import_module
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("training", "codes", "data"))
    with served(run, projects) as url, httpx.Client(base_url=url) as client:
        model, project = client.get("/api/model").json(), create(client, "kept")
    # The model is loaded as ever, but not before the test says so.
    slow = lambda name: load(name) if "audiovq" not in name or go.wait(60) else None  # noqa: E731
    monkeypatch.setattr(importlib, "import_module", slow)
    with open_studio(run, "tiny", projects, LIMITS) as (url, studio), httpx.Client(base_url=url) as client:
        assert client.get("/api/model", params={"early": True}).json() == model
        assert [each["id"] for each in client.get("/api/projects").json()] == [project]
        assert client.get(f"/api/projects/{project}").json()["name"] == "kept"
        assert create(client)
        assert not studio.loading.done()
        go.set()
        assert client.get("/api/model").json() == model
    known = projects / "model.json"
    for change in (
        lambda: (run / "README.md").write_text("a card, which may have another licence"),
        lambda: known.write_text("[]"),
        lambda: known.write_text("{"),
        known.unlink,
    ):
        change()
        with open_studio(run, "tiny", projects, LIMITS) as (_, studio):
            assert studio.known is None
            assert studio.model() == studio.engine.describe() | {"limits": model["limits"]}
        assert json.loads(known.read_text())["model"]["hash"] == model["hash"]


def test_the_package_knows_the_bundled_model(tmp_path: Path) -> None:
    """So that the page is there at once on the first start, too. If not: python benchmarks/bundle.py"""
    with open_studio(bundled_model(), "the bundled model", tmp_path, LIMITS) as (_, studio):
        assert studio.known == studio.engine.describe() == json.loads(BUNDLED.read_text())["model"]
    with open_studio(bundled_model(), "another name", tmp_path, LIMITS) as (_, studio):
        assert studio.known is None


def test_the_command_serves_without_torch_and_survives_a_kill(tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiovq", "studio", str(tiny_run), "--projects", str(tmp_path / "projects")]
    project = ""
    for kill in (True, False):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            url = next(word for word in line.split() if word.startswith("http"))
            with httpx.Client(base_url=url, timeout=60) as client:
                if kill:
                    project = create(client, "kept")
                    make(client, project)
                    client.post(f"/api/projects/{project}/jobs", json={"kind": "make", "seconds": 60})
                    process.kill()
                else:
                    found = client.get(f"/api/projects/{project}").json()
                    assert (found["name"], len(found["versions"])) == ("kept", 1)
                    assert client.get(f"/api/projects/{project}/versions/1/sound").status_code == 200
                    process.terminate()
                    assert process.wait(20) == 0
    code = "import sys, audiovq.studio.server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_example_of_the_documentation_makes_a_piece(url: Url, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "studio-rest.md").read_text()
    script = page.split("```text\n")[1].split("```")[0].replace("http://127.0.0.1:7860", url)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=60)
    assert soundfile.info(tmp_path / "piece.flac").duration == 5.0


# --- live -------------------------------------------------------------------------------------------------------------


def listen(url: Url, **headers: str) -> ClientConnection:
    return connect(url.replace("http", "ws") + "/api/live", additional_headers=headers)


def hear(line: ClientConnection, n: int, facts: Any = None, **turn: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """At least n samples of a mono model, and what is said of it, unless `facts` is {}; `turn` is said first."""
    sound = np.zeros(0, np.float32)
    line.send(json.dumps(turn))
    while len(sound) < n or facts is None:
        found = line.recv(timeout=20)
        if isinstance(found, str):
            facts = (facts or {}) | json.loads(found)
            assert "ended" not in facts, facts
        else:
            sound = np.concatenate([sound, np.frombuffer(found, np.float32)])
            line.send(json.dumps({"played": 10**9}))  # no more than what was sent counts
    return sound, facts or {}


def test_live_sound_its_controls_and_what_is_kept(
    client: httpx.Client, url: Url, tiny_run: Path, tmp_path: Path
) -> None:
    with listen(url) as line:
        sound, facts = hear(line, 8000, set={"seed": 7, "labels": {"genre": "rock"}}, buffer=0.2)
        live = Generator.from_pretrained(tiny_run, "cpu").live(7, genre="rock")
        assert np.allclose(sound[:8000], live.read(1)[0], atol=1e-5)
        assert np.abs(sound).max() > 0
        assert (facts["controls"]["seed"], facts["levels"]) == (7, 3)
        assert facts["latency"] == live.latency_seconds
        kept = client.post("/api/live/keep?seconds=0.9").json()
        _, facts = hear(line, 2000, set={"temperature": 0.5, "labels": {"genre": None}})
        assert (facts["controls"]["temperature"], facts["controls"]["labels"]) == (0.5, {})
        for turn, words in (({"set": {"tempo": 1}}, "tempo: no such control"), ({"buffer": 99}, "buffer: "),
                            ({"set": {"genre": "jazz"}}, "expected one of: folk, rock"), ({"x": 1}, "x: ")):  # fmt: skip
            assert words in hear(line, 500, **turn)[1]["error"]
    place = f"/api/projects/{kept['id']}"
    again = client.post("/api/live/keep", params={"project": kept["id"]}).json()  # also after the end
    assert (len(again["versions"]), again["id"]) == (2, kept["id"])
    assert again["versions"][1]["seconds"] < 8.01
    # The version has the codes that were played, and sounds like them to the bit.
    (tmp_path / "x.codes").write_bytes(client.get(f"{place}/versions/1/codes").content)
    codes = Codes.load(tmp_path / "x.codes")
    assert (kept["name"], codes.n_samples) == ("Live", 29 * 256)
    live.read(3)
    music = [level.unfold(0, len(part), 1) for level, part in zip(live.codes().levels, codes.levels, strict=True)]
    starts = [(windows == part).all(dim=1).nonzero()[0, 0] for windows, part in zip(music, codes.levels, strict=True)]
    assert [int(start) for start in starts] == [int(starts[0]) * ratio for ratio in (1, 2, 4)]
    (tmp_path / "x.wav").write_bytes(client.get(f"{place}/versions/1/sound").content)
    sound, expected = soundfile.read(tmp_path / "x.wav", dtype="int16")[0], live.tokenizer.decode(codes)[0]
    assert np.array_equal(sound, (expected.clamp(-1, 1) * 32768).round().clamp(max=32767).short().numpy())
    client.delete(place)


def test_a_studio_ends_while_somebody_plays(tiny_run: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as page:
        with served(tiny_run, tmp_path) as url:
            line = page.enter_context(listen(url))
            line.send('{"buffer": 0.1}')
            line.recv(timeout=20)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        with pytest.raises(ConnectionClosed):
            list(line)


def test_the_page_gets_no_more_than_its_buffer(url: Url) -> None:
    with listen(url) as line:
        line.send(json.dumps({"buffer": 0.5}))
        sizes = []
        with contextlib.suppress(TimeoutError):
            while True:
                found = line.recv(timeout=1)
                sizes += [len(found) // 4] if isinstance(found, bytes) else []
        assert 4000 <= sum(sizes) < 4000 + max(sizes)


def test_one_plays_at_a_time(url: Url, open_url: Url) -> None:
    with listen(url) as first:
        hear(first, 100, buffer=0.1)
        with listen(url) as second:
            second.send("{}")
            assert "you play in another window" in json.loads(second.recv(timeout=20))["ended"]
        hear(first, 100, {})
    visitors = {name: f"audiovq-visitor={name * 30}" for name in "ab"}
    with listen(open_url, Cookie=visitors["a"]) as first:
        hear(first, 100, buffer=0.1)
        with listen(open_url, Cookie=visitors["b"]) as second:
            second.send("{}")
            assert "somebody else plays" in json.loads(second.recv(timeout=20))["ended"]
        with httpx.Client(base_url=open_url, headers={"Cookie": visitors["b"]}) as other:
            refused(other.post("/api/live/keep"), 409, "play first")
    for _ in range(100):  # its end is noticed soon
        with listen(open_url, Cookie=visitors["b"]) as second:
            second.send('{"buffer": 0.1}')
            if "ended" not in json.loads(second.recv(timeout=20)):
                return
        time.sleep(0.05)
    raise AssertionError("the place is still taken")


def test_nobody_listens_for_long(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.studio.live.IDLE_SECONDS", 0.3)
    with listen(url) as line:
        line.send('{"buffer": 0.1}')
        *_, last = line
        assert "so the music has ended" in json.loads(last)["ended"]
    with listen(url) as line:
        assert "ended" in json.loads(line.recv(timeout=20))  # it says nothing at all


def test_a_slow_machine_leaves_out_detail(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.studio.live.ENOUGH", 1e9)
    with listen(url) as line:
        assert hear(line, 1000, buffer=0.1)[1]["levels"] == 3
        facts = hear(line, 4000, underruns=1)[1]
        assert facts["levels"] == 2
        assert facts["latency"] > 0.25
        assert hear(line, 4000, {}, underruns=1)[1] == {}  # the same pause


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {},
])  # fmt: skip
def test_other_pages_cannot_play(url: Url, headers: dict[str, str]) -> None:
    name = "127.0.0.1" if headers else "evil.example"
    with socket.create_connection(("127.0.0.1", int(url.split(":")[-1]))) as raw, pytest.raises(InvalidStatus) as found:
        connect(f"ws://{name}/api/live", sock=raw, additional_headers=headers).__enter__()
    assert found.value.response.status_code == 403
    with listen(url, Origin=url) as own:
        hear(own, 100, buffer=0.1)
