"""Music that is no local folder: URLs, tar files and rows of the library datasets give the tracks of a folder."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import assert_one_line_error, cli

from audiovq.data import storage
from audiovq.data.sources import local_music
from audiovq.data.tracks import DataConfig, Scan, scan
from audiovq.evaluation.held_out import scan_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "audiovq" / "music"


def pack(path: Path, files: list[Path], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in files:
            tar.add(file, file.name)
    return path


def tracks(found: Scan) -> dict[str, Any]:
    """What a scan knows of each track, by the end of its name."""
    return {t.path[-len("track-0.wav") :]: (t.audio_sha256, t.split, t.labels, t.samples) for t in found.tracks}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a local S3 server."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they have listings and addresses of other servers
    fsspec.filesystem("s3").mkdir(f"music-{port}")
    yield f"s3://music-{port}"
    server.stop()


def as_s3(music: Path, request: pytest.FixtureRequest) -> str:
    url = request.getfixturevalue("bucket")
    fsspec.filesystem("s3").put(f"{music}/", f"{url}/mine/", recursive=True)
    return f"{url}/mine"


def as_s3_shards(music: Path, request: pytest.FixtureRequest) -> str:
    url = request.getfixturevalue("bucket")
    files, s3 = sorted(music.iterdir()), fsspec.filesystem("s3")
    for i in range(2):
        s3.put(str(pack(music.parent / f"s{i}.tar", files[4 * i : 4 * i + 4])), f"{url}/shard-{i:03d}.tar")
    return f"{url}/shard-*.tar"


def as_web_tar(music: Path, request: pytest.FixtureRequest) -> str:
    folder, address = request.getfixturevalue("site")
    pack(folder / "my music.tar.gz", sorted(music.iterdir()), "w:gz")
    return f"{address}/my%20music.tar.gz?token=a"


def as_web_folder(music: Path, request: pytest.FixtureRequest) -> str:
    folder, address = request.getfixturevalue("site")
    shutil.copytree(music, folder / "mine")
    return f"{address}/mine"


def as_memory(music: Path, request: pytest.FixtureRequest) -> str:
    url = f"memory://music-{music.parent.name}"
    for path in music.iterdir():
        with fsspec.open(f"{url}/{path.name}", "wb") as file:
            file.write(path.read_bytes())  # type: ignore[union-attr]
    return url


def as_tars(music: Path, request: pytest.FixtureRequest) -> str:
    files = sorted(music.iterdir())
    for i in range(2):
        pack(music.parent / f"shard-{i:02d}.tar", files[4 * i : 4 * i + 4])
    return f"{music.parent}/shard-{{00..01}}.tar"


def stored(datasets: Any) -> dict[str, Any]:
    """How a column of `Audio` is stored; the library writes one only beside torchcodec."""
    return {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def with_audio(rows: Any, *columns: str) -> Any:
    """Rows whose columns of bytes and paths are columns of `Audio`."""
    import datasets

    for column in columns:
        rows = rows.cast_column(column, datasets.Audio(decode=False))
    return rows


def as_datasets(music: Path, request: pytest.FixtureRequest) -> str:
    datasets = pytest.importorskip("datasets")
    parts: dict[str, Any] = {"train": [], "validation": []}
    for path in sorted(music.glob("*.wav")):
        labels = json.loads(path.with_suffix(".json").read_text())
        sound = {"bytes": path.read_bytes(), "path": path.name}
        row = {"audio": sound, "genre": ["folk", "rock"].index(labels["genre"])}
        parts["validation" if labels["split"] == "valid" else "train"].append(row)
    features = datasets.Features({"audio": stored(datasets), "genre": datasets.ClassLabel(names=["folk", "rock"])})
    rows = {name: with_audio(datasets.Dataset.from_list(part, features), "audio") for name, part in parts.items()}
    datasets.DatasetDict(rows).save_to_disk(str(music.parent / "saved"))
    return f"datasets://{music.parent}/saved"


def as_parquet(music: Path, request: pytest.FixtureRequest) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = music.parent / "hf"
    saved = datasets.load_from_disk(as_datasets(music, request).removeprefix("datasets://"))
    (music.parent / "parquet").mkdir()
    for name, rows in saved.items():
        rows.to_parquet(str(music.parent / "parquet" / f"{name}-0.parquet"))
    return f"datasets://{music.parent}/parquet"


KINDS = [as_s3, as_s3_shards, as_web_tar, as_web_folder, as_memory, as_tars, as_datasets, as_parquet]


@pytest.fixture
def mine(music: Path, tmp_path: Path) -> Path:
    """A copy of the music, beside which tests put files."""
    return Path(shutil.copytree(music, tmp_path / "mine"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_source_has_the_tracks_of_the_folder(
    kind: Any, mine: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    place = kind(mine, request)
    folder = local_music(place)
    said = " ".join(capfd.readouterr().err.split())
    assert f"data: copies {place} to {folder}" in said
    assert folder.parent == own_cache
    config = DataConfig(min_seconds=0.5)
    found = scan(folder, config)
    assert tracks(found) == tracks(scan(mine, config))
    assert len(found.tracks) == 4
    assert found.rejected == []
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert local_music(place) == folder  # copied once
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_local_folder_stays_where_it_is(mine: Path, own_cache: Path) -> None:
    assert local_music(str(mine)) == mine
    assert not own_cache.exists()


def test_an_interrupted_copy_goes_on(
    mine: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    place, download, names = as_memory(mine, request), storage.download, []

    def fails_once(url: str, name: str, *rest: Any) -> None:
        names.append(name)
        if len(names) == 3:
            raise ValueError("the line is cut")
        download(url, name, *rest)

    monkeypatch.setattr(storage, "download", fails_once)
    with pytest.raises(ValueError, match="the line is cut"):
        local_music(place)
    folder = local_music(place)
    assert len(names) == 9  # the first two files were there
    assert tracks(scan(folder, DataConfig())) == tracks(scan(mine, DataConfig()))


def test_a_run_goes_on_exactly_after_its_copy_is_gone(
    mine: Path, tiny_recipe: Path, tmp_path: Path, own_cache: Path
) -> None:
    pack(tmp_path / "music.tar", sorted(mine.iterdir()))
    given = ("train", tiny_recipe, "--data", tmp_path / "music.tar")
    assert cli(*given, "--out", tmp_path / "whole").exit_code == 0
    result = cli(*given, "--out", tmp_path / "cut", "--stage", "tokenizer")
    assert result.exit_code == 0, result.output
    shutil.rmtree(own_cache)
    result = cli(*given, "--out", tmp_path / "cut")
    assert result.exit_code == 0, result.output
    assert "data: copies" in " ".join(result.output.split())
    for name in ("tokenizer/model.safetensors", "prior-0/model.safetensors", "codes/shard-00000-level-2.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    other = shutil.copytree(mine, tmp_path / "other")
    (other / "track-0.wav").write_bytes((other / "track-1.wav").read_bytes())
    pack(tmp_path / "music.tar", sorted(other.iterdir()))
    shutil.rmtree(own_cache)
    (tmp_path / "cut" / "codes" / "index.json").unlink()
    assert_one_line_error(
        cli(*given, "--out", tmp_path / "cut"), "track-0.wav: another recording than when the run began"
    )


def test_bad_files_of_a_source_are_set_aside(mine: Path, tmp_path: Path) -> None:
    (mine / "broken.flac").write_bytes(b"fLaC and no more")
    (mine / "program.exe").write_bytes(b"MZ")
    (mine / ".hidden.wav").write_bytes(b"")
    folder = local_music(str(pack(tmp_path / "music.tar", sorted(mine.iterdir()))))
    found = scan(folder, DataConfig())
    assert [r.path for r in found.rejected] == ["music/broken.flac"]
    assert len(found.tracks) == 4
    assert not list(folder.rglob("program.exe"))
    assert not list(folder.rglob(".hidden.wav"))


def test_one_of_two_audio_columns_is_chosen(mine: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sounds = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(mine.glob("*.wav"))[:2]]
    features = datasets.Features(
        {"mix": stored(datasets), "voice": stored(datasets), "genre": datasets.Value("string")}
    )
    rows = datasets.Dataset.from_list([{"mix": sounds[0], "voice": sounds[1], "genre": "folk"}], features)
    datasets.DatasetDict({"train": with_audio(rows, "mix", "voice")}).save_to_disk(str(tmp_path / "two"))
    loaded = datasets.load_from_disk(str(tmp_path / "two"))  # as of the hub: columns that would be decoded
    for name in ("mix", "voice"):
        loaded["train"] = loaded["train"].cast_column(name, datasets.Audio())
    folder = local_music(f"datasets://{tmp_path}/two?column=voice")
    (track,) = scan(folder, DataConfig(valid_fraction=0)).tracks
    assert (folder / track.path).read_bytes() == sounds[1]["bytes"]
    assert track.labels == {"genre": "folk"}


def test_a_row_without_audio_is_set_aside_and_one_split_is_held_out_as_of_a_folder(mine: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sounds = [{"bytes": (mine / f"track-{i}.wav").read_bytes(), "path": ["a.mp9", None][i]} for i in range(2)]
    sounds += [None, {"bytes": None, "path": str(mine / "track-2.wav")}]
    features = datasets.Features({"sound": stored(datasets), "year": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"sound": sounds, "year": [1999, None, 3, 4]}, features)
    with_audio(rows, "sound").save_to_disk(str(tmp_path / "saved"))
    found = scan(local_music(f"datasets://{tmp_path}/saved?column=sound"), DataConfig())
    assert [(r.path, r.reason) for r in found.rejected] == [("train/0000002-track.wav", "empty file (0 bytes)")]
    assert [track.labels for track in found.tracks] == [{"year": "1999"}, {}, {"year": "4"}]
    assert [track.path[-11:] for track in found.tracks] == ["0-a.mp9.wav", "1-track.wav", "track-2.wav"]
    assert sorted(track.split for track in found.tracks) == ["train", "train", "valid"]


def test_what_cannot_be_read_is_one_line(
    mine: Path, tiny_recipe: Path, tmp_path: Path, site: tuple[Path, str], own_cache: Path
) -> None:
    folder, address = site
    (folder / "damaged.tar").write_bytes(pack(tmp_path / "a.tar", sorted(mine.iterdir())).read_bytes()[:30000])
    pack(tmp_path / "0.tar", sorted(mine.iterdir()))  # the next one is missing
    (folder / "text.tar").write_text("no tar")
    (folder / "empty").mkdir()
    with tarfile.open(folder / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../evil.wav")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"RIFF"))
    for place, words in {
        "what://music": "what://music: cannot be opened", f"{address}/none.tar": "none.tar", f"{address}/none": "none",
        f"{address}/damaged.tar": "damaged.tar: not a tar file, or damaged", f"{address}/text.tar": "not a tar file, or damaged",
        f"{address}/evil.tar": "expected one within the music folder, found '../evil.wav'", f"{address}/empty": "empty: expected a file, or a folder with files, found none",
        str(tmp_path / "none.tar"): "none.tar: expected a file", f"{tmp_path}/{{0..1}}.tar": "/1.tar: expected a file, or a folder with files, found none",
        f"{tmp_path}/x-*.tar": "x-*.tar: expected a file", str(tmp_path / "nowhere"): "no such folder",
    }.items():  # fmt: skip
        result = cli("train", tiny_recipe, "--data", place, "--out", tmp_path / "run")
        assert_one_line_error(result, words)
        assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("evil.wav"))
    assert not list(own_cache.rglob("*.wav"))  # nothing half is left


def test_wrong_data_sets_are_one_line(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "texts"))
    features = datasets.Features({"a": stored(datasets), "b": stored(datasets)})
    sound = {"bytes": (mine / "track-0.wav").read_bytes(), "path": "a.wav"}
    two = with_audio(datasets.Dataset.from_dict({"a": [sound], "b": [sound]}, features), "a", "b")
    two.save_to_disk(str(tmp_path / "two"))
    for place, words in {
        f"datasets://{tmp_path}/texts": "expected one Audio column among text, found 0 of them",
        f"datasets://{tmp_path}/two": r"among a, b, found 2 of them, choose with \?column=",
        f"datasets://{tmp_path}/two?column=c": "among a, b, found c", f"datasets://{tmp_path}/two?split=test": "expected split train, found test",
        f"datasets://{tmp_path}/two?colunm=a": "expected the options name, split, column or revision, found colunm",
        f"datasets://{tmp_path}/nowhere": "cannot be opened",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words) as error:
            local_music(place)
        assert "\n" not in str(error.value)
    assert len(scan(local_music(f"datasets://{tmp_path}/two?column=b"), DataConfig()).tracks) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package datasets is missing; pip install 'audiovq\[datasets\]'"):
        local_music("datasets://me/music")


def test_plan_and_eval_take_a_source(mine: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    pack(tmp_path / "music.tar", sorted(mine.iterdir()))
    result = cli("plan", tiny_recipe, "--data", tmp_path / "music.tar", "--json")
    assert result.exit_code == 0, result.output
    assert tracks(scan_folder(str(tmp_path / "music.tar"))) == tracks(scan(mine, DataConfig()))
