"""Scanning a folder: what is used, what is set aside and why, labels and split."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, tones
from mutagen.flac import FLAC

from audiovq.data import tracks as tracks_module
from audiovq.data.tracks import DataConfig, Scan, find_audio, scan


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


def test_a_broken_track_json_sets_its_track_aside(folder: Path) -> None:
    (folder / "good.json").write_text("{oops")
    found = scan(folder, DataConfig())
    assert any(r.path == "good.wav" and "good.json: not valid JSON" in r.reason for r in found.rejected)


def test_split_is_by_track_and_depends_on_names_alone(tmp_path: Path) -> None:
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", tones(1, 8000, seed=i), 8000)
    first = scan(tmp_path, DataConfig(valid_fraction=0.2))
    assert len(first.split("valid")) == 2
    assert len(first.split("train")) == 8
    again = scan(tmp_path, DataConfig(valid_fraction=0.2))
    assert first.tracks == again.tracks
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in tmp_path.glob("*.wav"):
        shutil.copy(path, moved)
    assert [t.split for t in scan(moved, DataConfig(valid_fraction=0.2)).tracks] == [t.split for t in first.tracks]


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
    assert [t.path for t in found.split("valid")] == ["2.wav"]
    assert found.rejected[0].reason == "split: expected train or valid, found 'test'"
    assert "split" not in found.split("valid")[0].labels


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
    with pytest.raises(OSError, match="No space left"):
        scan(folder, DataConfig(), Path("/dev/full"))


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
