"""Scanning a folder: what is used, what is set aside and why, labels and split."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from conftest import SAMPLES, tones
from mutagen.aiff import AIFF
from mutagen.flac import FLAC, VCFLACDict
from mutagen.id3 import TCON, TIT2, TPE1
from mutagen.wave import WAVE
from test_audio import encoded, needs_ffmpeg

from audiovq.data import music, tracks as tracks_module
from audiovq.data.datasets import WaveformCrops, name_of, pick
from audiovq.data.music import TRACK, Scan, Track, table_of
from audiovq.data.scan_cache import scan_file
from audiovq.data.tracks import DataConfig, check_relative, find_audio, scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files of several kinds, and every kind of bad file."""
    (tmp_path / "album").mkdir()
    soundfile.write(tmp_path / "good.wav", tones(2, 8000, seed=1), 8000)
    soundfile.write(tmp_path / "album" / "tagged.flac", tones(3, 16000, seed=2), 16000)
    tags = FLAC(tmp_path / "album" / "tagged.flac")
    tags.update({"artist": "Ann", "genre": "folk", "title": "One"})
    tags.save()
    shutil.copy(tmp_path / "good.wav", tmp_path / "zz-copy.wav")
    soundfile.write(tmp_path / "zz-other-tags.flac", soundfile.read(tmp_path / "good.wav", dtype="int16")[0], 8000)
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.flac").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(20000), 8000)
    soundfile.write(tmp_path / "one-sample.wav", np.ones(1), 8000)
    nan = tones(2, 8000, seed=3)
    nan[5] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.flac", tones(2, 8000, seed=4), 8000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:3000])
    loud = np.clip(5 * tones(2, 8000, seed=5), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, 8000)
    (tmp_path / "notes.txt").write_text("not even by name")
    return tmp_path


def test_bad_files_are_set_aside_with_reason_and_good_ones_used(folder: Path) -> None:
    found = scan(folder, DataConfig(valid_fraction=0))
    reasons = {r.path: r.reason for r in found.rejected}
    assert {t.path for t in found.tracks} == {"good.wav", "album/tagged.flac", "loud.wav"}
    assert reasons["zz-copy.wav"] == "same audio as good.wav"
    assert reasons["zz-other-tags.flac"] == "same audio as good.wav"  # another container, the same samples
    assert "not audio" in reasons["text.wav"]
    assert "empty" in reasons["empty.flac"]
    assert "silent" in reasons["silent.wav"]
    assert "too short" in reasons["one-sample.wav"]
    assert "not finite" in reasons["nan.wav"]
    assert "truncated" in reasons["cut.flac"]
    report = found.report()
    assert report["tracks"] == 3
    assert report["hours"] == pytest.approx(7 / 3600)
    assert report["sample_rates"] == {"8000": 2, "16000": 1}
    assert report["clipped"] == ["loud.wav"]
    assert report["duplicates"] == ["zz-copy.wav", "zz-other-tags.flac"]


def test_a_scan_is_saved_and_loaded_as_it_was(folder: Path, tmp_path: Path) -> None:
    found = scan(folder, DataConfig())
    found.save(tmp_path / "run" / "data")
    assert Scan.load(tmp_path / "run" / "data") == found


def test_labels_from_tags_then_manifest_then_json(folder: Path) -> None:
    (folder / "album" / "track.json").write_text(json.dumps({"genre": "ballad", "mood": "calm", "year": 1999}))
    (folder / "good.json").write_text(json.dumps({"title": "Good"}))
    (folder / "list.jsonl").write_text('{"path": "good.wav", "title": "from manifest", "artist": "Bob"}\n')
    found = {t.path: t.labels for t in scan(folder, DataConfig(manifest="list.jsonl")).tracks}
    assert found["album/tagged.flac"] == {
        "artist": "Ann", "genre": "ballad", "title": "One", "mood": "calm", "year": "1999",
    }  # fmt: skip
    assert found["good.wav"] == {"title": "Good", "artist": "Bob"}


def test_lists_of_labels_are_joined_and_nested_ones_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tones(1, 8000), 8000)
    content = {"genre": ["folk", "rock"], "years": [1999], "odd-meta": {"a": 1}, "nothing": None, "mood": ""}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (track,) = scan(tmp_path, DataConfig(valid_fraction=0, min_seconds=0.5)).tracks
    assert track.labels == {"genre": "folk, rock", "years": "1999"}
    told = " ".join(capfd.readouterr().err.split())
    assert "label 'odd-meta': expected text, a number or a list of them" in told
    assert "nothing" not in told


@pytest.mark.parametrize("place", ["track.json", "a.json", "a.txt"])
@pytest.mark.parametrize(("content", "reason"), [
    (b"[" * 200_000, "not valid JSON"), (b'{"a": "\xe9"}', "not valid"), (500_000_000, "expected labels of at most 1 MB"),
    (b'{"genre": "\\ud800"}', "label 'genre': expected Unicode text"), (b'{"\\udcff": "x"}', "expected Unicode text"),
    (b'{"year": ' + b"9" * 9999 + b"}", "not valid JSON"), (b"[1]", "expected an object of labels, found list"),
])  # fmt: skip
def test_labels_that_cannot_be_used_set_their_tracks_aside(
    tmp_path: Path, place: str, content: bytes | int, reason: str
) -> None:
    (tmp_path / "music" / "album").mkdir(parents=True)
    for name in ("album/a.wav", "b.wav"):
        soundfile.write(tmp_path / "music" / name, tones(1, 8000, seed=len(name)), 8000)
    path = tmp_path / "music" / "album" / place
    path.write_bytes(b"" if isinstance(content, int) else content)
    if isinstance(content, int):
        os.truncate(path, content)
    found = scan(tmp_path / "music", DataConfig(), tmp_path / "scan_cache.jsonl")
    found.save(tmp_path / "run")
    assert Scan.load(tmp_path / "run") == found
    if place == "a.txt" and not isinstance(content, int) and b"\xe9" not in content:  # any text is a caption
        assert found.tracks[0].labels == {"text": content.decode()}
        return
    assert [track.path for track in found.tracks] == ["b.wav"]
    assert [item.path for item in found.rejected] == ["album/a.wav"]
    assert reason in found.rejected[0].reason


def test_lines_of_a_manifest_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(1, 8000), 8000)
    lines = [
        b"[" * 200_000,
        b'{"path": "a.wav", "mood": "\xff',
        b'{"mood": "calm"}',
        b"3",
        b'{"path": "b.wav"}',
        b"x" * (1 << 21),
    ]
    (tmp_path / "list.jsonl").write_bytes(b"\n".join([*lines, b"", b'{"path": "a.wav", "mood": "wild"}']))
    found = scan(tmp_path, DataConfig(manifest="list.jsonl"))
    assert found.tracks[0].labels == {"mood": "wild"}
    reasons = {item.path: item.reason for item in found.rejected}
    assert list(reasons) == [f"list.jsonl line {i}" for i in range(1, 7)]
    assert reasons["list.jsonl line 5"].endswith("found the path of no track, or of several: 'b.wav'")
    assert reasons["list.jsonl line 6"].endswith(f"in at most 1 MB, found '{'x' * 40}'")
    os.truncate(tmp_path / "list.jsonl", 500_000_000)
    assert [track.path for track in scan(tmp_path, DataConfig(manifest="list.jsonl")).tracks] == ["a.wav"]


def test_files_of_labels_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Windows writes one."""
    soundfile.write(tmp_path / "a.wav", tones(1, 8000), 8000)
    texts = {
        "track.json": '{"mood": "calm"}',
        "a.json": '{"year": 1999}',
        "a.txt": "a song\r\n",
        "l.jsonl": '{"path": "a.wav", "key": "C"}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig", newline="")
    found = scan(tmp_path, DataConfig(manifest="l.jsonl", min_seconds=0.5))
    assert found.tracks[0].labels == {"mood": "calm", "year": "1999", "text": "a song", "key": "C"}
    assert not found.rejected


def test_a_file_that_changes_while_it_is_read_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, tones(2, 8000, seed=ord(name[0])), 8000)

    def scan_and_change(path: Path) -> object:
        found = scan_file(path)
        if path.name == "a.wav":  # as a download that goes on
            soundfile.write(path, tones(3, 8000), 8000)
        return found

    monkeypatch.setattr(tracks_module, "scan_file", scan_and_change)
    found = scan(tmp_path, DataConfig(), tmp_path / "cache" / "scan.jsonl")
    assert [track.path for track in found.tracks] == ["b.wav"]
    assert [vars(item) for item in found.rejected] == [
        {"path": "a.wav", "reason": "changed while it was read; start again when it is complete"}
    ]
    monkeypatch.undo()
    again = scan(tmp_path, DataConfig(), tmp_path / "cache" / "scan.jsonl")
    assert {track.path: track.samples for track in again.tracks} == {"a.wav": 24000, "b.wav": 16000}


def test_a_path_in_a_manifest_may_be_written_in_other_ways(tmp_path: Path) -> None:
    (tmp_path / "Tänze").mkdir()
    names = ["Tänze/a.wav", "b.wav", "c.wav", "d.WAV", "x.wav", "X.wav"]
    for i, name in enumerate(names):
        soundfile.write(tmp_path / name, tones(1, 8000, seed=i), 8000)
    written = [
        unicodedata.normalize("NFD", "Tänze\\a.wav"), "./b.wav", str(tmp_path / "no" / ".." / "c.wav"), "D.wav", "X.wav",
        "x.Wav", "../elsewhere.wav",
    ]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"path": path, "id": path}) + "\n" for path in written))
    found = scan(tmp_path, DataConfig(manifest="list.jsonl", valid_fraction=0))
    labels = {track.path: track.labels for track in found.tracks}
    expected = [*(written[i] for i in range(4)), None, "X.wav"]
    assert labels == {name: {"id": path} if path else {} for name, path in zip(names, expected, strict=True)}
    assert [item.reason.split(": ")[1] for item in found.rejected] == ["'x.Wav'", "'../elsewhere.wav'"]


@pytest.mark.parametrize("kind", ["id3 in wav", "info in wav", "id3 in aiff", "names in aiff"])
def test_tags_of_uncompressed_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.wav" if "wav" in kind else "a.aiff")
    expected = {"artist": "Ann", "title": "One"}
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        if "id3" not in kind:
            file.artist, file.title = expected["artist"], expected["title"]
        file.write(tones(1, 8000))
    if "id3" in kind:
        tagged = WAVE(path) if "wav" in kind else AIFF(path)
        tagged.add_tags()
        assert tagged.tags is not None
        tagged.tags.add(TPE1(encoding=3, text=["Ann", "Bob"]))
        tagged.tags.add(TIT2(encoding=3, text="One"))
        tagged.tags.add(TCON(encoding=3, text="(17)"))
        tagged.save()
        expected |= {"genre": "Rock", "artist": "Ann, Bob"}
    assert scan(tmp_path, DataConfig()).tracks[0].labels == expected


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".wma", ".m4a", ".mka", ".wv", ".wav"])
def test_tags_of_files_that_ffmpeg_writes(tmp_path: Path, suffix: str) -> None:
    tags = {"artist": "Ann", "album": "Two", "genre": "folk", "title": "One"}
    options = [word for name, text in tags.items() for word in ("-metadata", f"{name}={text}")]
    encoded(tmp_path / f"a{suffix}", *options)
    assert scan(tmp_path, DataConfig()).tracks[0].labels == tags


def test_one_unreadable_tag_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", tones(1, 8000), 8000)
    tags = FLAC(tmp_path / "a.flac")
    tags.update({"artist": "Ann", "genre": "folk"})
    tags.save()
    get = VCFLACDict.get

    def fails(self: VCFLACDict, key: str) -> object:
        if key == "artist":
            raise KeyError("damaged")
        return get(self, key)

    monkeypatch.setattr(VCFLACDict, "get", fails)
    assert scan(tmp_path, DataConfig()).tracks[0].labels["genre"] == "folk"


def test_linked_folders_are_used_once_and_links_to_nothing_are_named(tmp_path: Path) -> None:
    music = tmp_path / "music"
    (music / "album").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    soundfile.write(music / "album" / "a.wav", tones(1, 8000, seed=1), 8000)
    soundfile.write(tmp_path / "disk" / "b.wav", tones(1, 8000, seed=2), 8000)
    for link, target in (
        ("disk", "../disk"),
        ("disk2", "../disk"),
        ("album/up", ".."),
        ("loop", "."),
        ("c.wav", "gone.wav"),
    ):
        (music / link).symlink_to(target)
    os.mkfifo(music / "fifo.wav")  # would never end
    assert [str(path.relative_to(music)) for path in find_audio(music)] == ["album/a.wav", "c.wav", "disk/b.wav"]
    found = scan(music, DataConfig())
    assert [track.path for track in found.tracks] == ["album/a.wav", "disk/b.wav"]
    assert [(item.path, item.reason) for item in found.rejected] == [("c.wav", "No such file or directory")]


def test_a_folder_without_permission_is_named() -> None:
    code = """if True:
        import os, sys, tempfile
        from pathlib import Path
        from audiovq.data.tracks import find_audio
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "closed").mkdir(mode=0o700)
            (folder / "listed").mkdir()
            (folder / "listed" / "b.wav").touch()
            (folder / "listed").chmod(0o644)  # its names can be seen, but not its files
            (folder / "a.wav").touch()
            folder.chmod(0o755)
            if os.fork() == 0:
                os.getuid() == 0 and os.setuid(65534)  # root may read everything
                os.getuid() == 65534 or (folder / "closed").chmod(0)
                left_out = []
                assert [path.name for path in find_audio(folder, left_out)] == ["a.wav", "b.wav"]
                print([vars(item) for item in left_out], flush=True)
                os._exit(0)
            os.wait()
            (folder / "closed").chmod(0o700)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[{'path': 'closed', 'reason': 'cannot be read (Permission denied)'}]", done.stderr


def test_samples_of_a_run_are_not_music(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("songs", "runs/one/samples/prior-0"):
        (tmp_path / place).mkdir(parents=True)
        soundfile.write(tmp_path / place / "a.wav", tones(1, 8000, seed=len(place)), 8000)
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text("name: x")
    found = scan(tmp_path, DataConfig())
    assert [track.path for track in found.tracks] == ["songs/a.wav"]
    assert [vars(item) for item in found.rejected] == [{"path": "runs/one/samples", "reason": "samples of a run"}]
    assert len(find_audio(tmp_path)) == 1
    assert "runs/one/samples: samples of a run" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [
    {"path": ["a.wav"]}, {"samples": "many"}, {"samples": 0}, {"peak": None}, {"tags": [1]}, {"sample_rate": -1}, {"stamp": {}},
])  # fmt: skip
def test_damaged_lines_of_a_scan_are_scanned_again_or_named(tmp_path: Path, damage: dict[str, object]) -> None:
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", tones(1, 8000), 8000)
    cache = tmp_path / "scan_cache.jsonl"
    fresh = scan(tmp_path / "music", DataConfig(), cache)
    row = json.loads(cache.read_text())
    for content in (json.dumps(row | damage), "[" * 100_000, json.dumps(row)[:-9], json.dumps([row])):
        cache.write_text(content + "\n")
        assert scan(tmp_path / "music", DataConfig(), cache) == fresh
    fresh.save(tmp_path / "run")
    row = json.loads((tmp_path / "run" / "tracks.jsonl").read_text())
    for content in (json.dumps(row | {"samples": "many"}), json.dumps(row | {"labels": [1]}), "[" * 100_000):
        (tmp_path / "run" / "tracks.jsonl").write_text(content + "\n")
        with pytest.raises(ValueError, match="missing or damaged") as error:
            Scan.load(tmp_path / "run")
        assert "\n" not in str(error.value)


def test_a_broken_track_json_sets_its_track_aside(folder: Path) -> None:
    (folder / "good.json").write_text("{oops")
    found = scan(folder, DataConfig())
    assert any(r.path == "good.wav" and "good.json: not valid JSON" in r.reason for r in found.rejected)


def test_split_is_by_track_and_depends_on_names_alone(tmp_path: Path) -> None:
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", tones(1, 8000, seed=i), 8000)
    first = scan(tmp_path, DataConfig(valid_fraction=0.2))
    assert len(first.tracks.of("valid")) == 2
    assert len(first.tracks.of("train")) == 8
    again = scan(tmp_path, DataConfig(valid_fraction=0.2))
    assert first.tracks == again.tracks
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in tmp_path.glob("*.wav"):
        shutil.copy(path, moved)
    assert [t.split for t in scan(moved, DataConfig(valid_fraction=0.2)).tracks] == [t.split for t in first.tracks]


def test_files_of_one_name_are_on_the_same_side(tmp_path: Path) -> None:
    for i in range(12):
        for seed, suffix in ((i, "wav"), (100 + i, "flac")):  # not the same samples, as of a lossy copy
            soundfile.write(tmp_path / f"{i}.{suffix}", tones(1, 8000, seed=seed), 8000)
    for fraction in (0.1, 0.3, 0.45, 0.99):
        found = scan(tmp_path, DataConfig(valid_fraction=fraction)).tracks
        sides = [{Path(t.path).stem for t in found.of(side)} for side in ("train", "valid")]
        assert not sides[0] & sides[1]
        assert len(sides[0]) > 0
        assert len(sides[1]) == min(11, math.ceil(12 * fraction))


@pytest.mark.skipif(os.name == "nt", reason="a file cannot have such a name")
def test_a_name_with_a_colon_is_a_name(tmp_path: Path) -> None:
    for name in ("1: Intro.flac", "A: Best of"):
        check_relative(name)
    for name in ("C:", "C:/x.wav", "c:\\x.wav", "/x.wav", "\\x.wav", "a/../../x.wav"):
        with pytest.raises(ValueError, match="within the music folder"):
            check_relative(name)


def test_one_track_is_trained_on_and_two_leave_one_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(1, 8000, seed=1), 8000)
    assert [t.split for t in scan(tmp_path, DataConfig()).tracks] == ["train"]
    soundfile.write(tmp_path / "b.wav", tones(1, 8000, seed=2), 8000)
    assert sorted(t.split for t in scan(tmp_path, DataConfig()).tracks) == ["train", "valid"]


def test_a_split_in_the_labels_is_kept(tmp_path: Path) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", tones(1, 8000, seed=i), 8000)
    (tmp_path / "2.json").write_text('{"split": "valid"}')
    (tmp_path / "3.json").write_text('{"split": "test"}')
    found = scan(tmp_path, DataConfig(valid_fraction=0.25))
    assert [t.path for t in found.tracks.of("valid")] == ["2.wav"]
    assert found.rejected[0].reason == "split: expected train or valid, found 'test'"
    assert "split" not in found.tracks.of("valid")[0].labels


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        scan(tmp_path / "none", DataConfig())
    with pytest.raises(ValueError, match="no audio found"):
        scan(tmp_path, DataConfig())
    (tmp_path / "a.wav").write_text("x")
    with pytest.raises(ValueError, match=r"none of 1 files can be used; the first: a\.wav: not audio"):
        scan(tmp_path, DataConfig())
    with pytest.raises(ValueError, match="found a file"):
        find_audio(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="no such manifest"):
        scan(tmp_path, DataConfig(manifest="list.jsonl"))


def test_the_samples_are_music_with_tags_and_credits() -> None:
    found = scan(SAMPLES, DataConfig(folder=str(SAMPLES)))
    assert not found.rejected
    assert 5 * 60 <= sum(t.seconds for t in found.tracks if not t.path.startswith("generated/")) <= 10 * 60
    credits = (SAMPLES / "CREDITS.md").read_text()
    for track in found.tracks:
        assert track.labels["title"]
        assert Path(track.path).name in credits
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*")) < 8e6


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []
    real = tracks_module.scan_file
    monkeypatch.setattr(tracks_module, "scan_file", lambda path: names.append(path.name) or real(path))
    return names


def test_an_interrupted_or_later_scan_decodes_only_new_and_changed_files(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, decoded: list[str]
) -> None:
    cache, config = tmp_path_factory.mktemp("run") / "scan_cache.jsonl", DataConfig(valid_fraction=0)
    fresh = scan(folder, config)
    assert scan(folder, config, cache) == fresh
    whole = cache.read_bytes()
    names = {json.loads(line)["path"] for line in whole.splitlines()}
    bad = {"text.wav", "empty.flac", "nan.wav", "cut.flac"}
    everything = {path.relative_to(folder).as_posix() for path in find_audio(folder)}
    assert names == everything - bad
    for content, again in ((whole, bad), (whole[:-50], {*bad, "zz-other-tags.flac"}), (b"\xff{}\n3\n" + whole, bad)):
        cache.write_bytes(content)
        decoded.clear()
        assert scan(folder, config, cache) == fresh
        assert set(decoded) == again
    soundfile.write(folder / "loud.wav", tones(2, 8000, seed=9), 8000)
    cache.write_bytes(whole)
    decoded.clear()
    changed = scan(folder, config, cache)
    assert set(decoded) == {*bad, "loud.wav"}
    assert changed == scan(folder, config) != fresh


def test_the_scan_cache_of_an_earlier_version_is_read(folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    place = tmp_path / "run" / "data"
    fresh = scan(folder, DataConfig(), place / "scan_cache.jsonl")
    (place / "scan_cache.jsonl").rename(place / "looks.jsonl")
    decoded.clear()
    assert scan(folder, DataConfig(), place / "scan_cache.jsonl") == fresh
    assert set(decoded) == {"text.wav", "empty.flac", "nan.wav", "cut.flac"}


def test_a_full_disk_stops_the_scan_and_sets_nothing_aside(folder: Path) -> None:
    with pytest.raises(ValueError, match="No space left"):
        scan(folder, DataConfig(), Path("/dev/full"))


def scan_on_rank(rank: int, n_ranks: int, place: str) -> None:
    """One of several processes. Each notes what it lists and decodes; the second scan has the caches of the first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet-{n_ranks}", rank=rank, world_size=n_ranks)
    notes = Path(place) / f"notes-{n_ranks}-{rank}"

    def noted(function: Any) -> Any:
        def note(path: Path, *rest: Any) -> Any:
            with notes.open("a") as file:
                file.write(f"{function.__name__} {Path(path).name}\n")
            return function(path, *rest)

        return note

    for name in ("scan_file", "find_audio", "file_stamp"):
        setattr(tracks_module, name, noted(getattr(tracks_module, name)))
    cache = Path(place) / "data" / f"scan_cache-{rank}.jsonl"
    found = scan(Path(place) / "music", DataConfig(valid_fraction=0.5, manifest="list.jsonl"), cache)
    if rank == 0:
        found.save(Path(place) / f"found-{n_ranks}")
    dist.destroy_process_group()


def test_several_processes_scan_as_one_and_look_at_each_file_once(folder: Path, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("run")
    (folder / "list.jsonl").write_text('{"path": "good.wav", "mood": "calm"}\n{"path": "none.wav"}\n')
    shutil.copytree(folder, place / "music")
    whole = scan(place / "music", DataConfig(valid_fraction=0.5, manifest="list.jsonl"))
    assert whole.rejected[0].path == "list.jsonl line 2"
    files = Counter(path.name for path in find_audio(folder))
    for n_ranks in (2, 3):  # then another number of processes, for which the good files are known
        torch.multiprocessing.spawn(scan_on_rank, (n_ranks, str(place)), nprocs=n_ranks)  # type: ignore[attr-defined]
        assert Scan.load(place / f"found-{n_ranks}") == whole
        notes = [(place / f"notes-{n_ranks}-{rank}").read_text().splitlines() for rank in range(n_ranks)]
        assert [sum(line.startswith("find_audio") for line in lines) for lines in notes] == [1, *[0] * (n_ranks - 1)]
        looked = [{line.split()[1] for line in lines if line.startswith("file_stamp")} for lines in notes]
        assert sum(map(len, looked)) == len(set.union(*looked)) == len(files)  # by one process each
        decoded = Counter(line.split()[1] for line in itertools.chain(*notes) if line.startswith("scan_file"))
        assert decoded == (
            files if n_ranks == 2 else dict.fromkeys(("text.wav", "empty.flac", "nan.wav", "cut.flac"), 1)
        )
    assert not (place / "data" / ".scan").exists()


def test_many_tracks_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 tracks: opening them builds none, needs little memory, and gives the values of each."""
    n, split = 20_000, lambda i: "valid" if i % 10 == 0 else "train"
    tracks = (
        Track(f"{i % 7}/{i}.wav", f"{i:064x}", 8000, 1, 8000 + i, split(i), {"genre": f"g{i % 3}"}, stamp=[i, 2 * i])
        for i in range(n)
    )
    Scan(tmp_path, table_of(tracks), []).save(tmp_path / "data")
    built: list[object] = []
    validate = TRACK.validate_python
    monkeypatch.setattr(music, "TRACK", SimpleNamespace(validate_python=lambda x: built.append(x) or validate(x)))
    tracemalloc.start()
    found = Scan.load(tmp_path / "data")
    train = found.only(["[0-3]/*"]).tracks.of("train")
    crops = WaveformCrops(tmp_path, train, 8000, 1, 100, 0, cache_gigabytes=0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not built
    assert peak < 100 * n  # bytes: an object of a track alone has more than a thousand
    expected = [i for i in range(n) if i % 7 < 4 and i % 10]
    assert train.column(4).tolist() == [8000 + i for i in expected]
    assert train.seconds.sum() == pytest.approx(sum((8000 + i) / 8000 for i in expected))
    assert Counter(labels["genre"] for labels in train.labels()) == Counter(f"g{i % 3}" for i in expected)
    track, i = train[1234], expected[1234]
    assert (track.path, track.sha256, track.stamp) == (f"{i % 7}/{i}.wav", f"{i:064x}", [i, 2 * i])
    assert name_of(crops, 3) == train[pick(crops.ends, np.random.default_rng([0, 3]))].path
    assert len(built) == 3
    (tmp_path / "data" / "tracks.npy").unlink()  # as of version 0.1
    assert list(Scan.load(tmp_path / "data").tracks.facts()) == list(found.tracks.facts())


def test_a_scan_that_lost_a_line_is_not_used(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run" / "data"
    scan(folder, DataConfig()).save(place)
    lines = (place / "tracks.jsonl").read_text().splitlines(keepends=True)
    for content in ("".join(lines[:-1]), "".join(lines)[:-9], ""):
        (place / "tracks.jsonl").write_text(content)
        with pytest.raises(ValueError, match=r"data: missing or damaged .*delete recipe\.yaml") as error:
            Scan.load(place)
        assert "\n" not in str(error.value)


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "a.wav", tones(2, 8000), 8000)
    os.rename(os.fsencode(tmp_path / "a.wav"), os.fsencode(tmp_path / "music") + b"/\xe9.wav")
    found = scan(tmp_path / "music", DataConfig(), tmp_path / "scan_cache.jsonl")
    found.save(tmp_path / "run")
    assert Scan.load(tmp_path / "run") == found == scan(tmp_path / "music", DataConfig(), tmp_path / "scan_cache.jsonl")
    assert os.fsencode(found.tracks[0].path) == b"\xe9.wav"
