"""The studio without its page and its server: projects, versions, changes, recordings, export, and jobs."""

import dataclasses
import json
import math
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile
import torch
from conftest import TRACK, assert_one_line_error, cli, tones

from audiovq import Codes, Generator
from audiovq.api import bundled_model
from audiovq.evaluation.loudness import loudness
from audiovq.studio import sounds
from audiovq.studio.engine import Engine, training_bits
from audiovq.studio.jobs import Job, Queue, Stopped
from audiovq.studio.projects import Library, Project, Version
from audiovq.studio.requests import Export, JobRequest, Limits, Refused
from audiovq.studio.sounds import check_reference

LIMITS = Limits(max_seconds=8, max_upload_mb=0.5, max_takes=3, max_versions=9, max_projects=50, max_waiting=2)


@pytest.fixture(scope="module")
def loaded(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "sounds").mkdir()
    return Engine(tiny_run, "tiny", Library(folder / "projects", LIMITS), LIMITS, folder / "sounds")


@pytest.fixture
def engine(loaded: Engine, tmp_path: Path) -> Engine:
    """With no project yet."""
    loaded.library = loaded.sounds.library = Library(tmp_path / "projects", LIMITS)
    return loaded


@pytest.fixture
def project(engine: Engine) -> Project:
    return engine.library.create(Project(tokenizer_hash=engine.hash))


def do(engine: Engine, project: Project, kind: str, version: int | None = None, **request: Any) -> list[int]:
    """The numbers of the new versions."""
    body = {"kind": kind, "version": version, "seed": 1} | request
    job = engine.job(project, JobRequest.model_validate(body))
    return job.work(job)


def make(engine: Engine, project: Project, seconds: float = 2.0, **request: Any) -> int:
    return do(engine, project, "make", seconds=seconds, **request)[0]


def bring_in(engine: Engine, project: Project, source: Path) -> Version:
    """As the server does with an upload."""
    path = engine.library.folder(project) / "recordings" / f"incoming-{'ab' * 8}{source.suffix}"
    path.write_bytes(source.read_bytes())
    job = engine.open(project, path, source.name)
    try:
        return project.version(job.work(job)[0])
    except ValueError:
        job.discard()
        raise


def levels(engine: Engine, project: Project, number: int) -> list[torch.Tensor]:
    return engine.codes(project, number).levels


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16", always_2d=True)[0]


def decoded(generator: Generator, codes: Codes, n_levels: int | None = None) -> np.ndarray:
    """As 16-bit samples [n, channels]."""
    return (generator.tokenizer.decode(codes, n_levels) * 32768).round().clamp(max=32767).to(torch.int16).T.numpy()


def reread(engine: Engine) -> Library:
    """As the next start of the studio finds it."""
    return Library(engine.library.root, LIMITS)


# --- making and changing ----------------------------------------------------------------------------------------------


def test_takes_are_the_generators_pieces(engine: Engine, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, str]] = []
    request = JobRequest(kind="make", seconds=2, seed=7, takes=2, labels={"genre": "folk"})
    job = engine.job(project, request)
    report = job.report
    monkeypatch.setattr(job, "report", lambda *progress: (seen.append(progress), report(*progress)))
    numbers = job.work(job)
    expected = engine.generator.sample_codes(2.0, seed=7, n=2, labels={"genre": "folk"})
    for take, (number, codes) in enumerate(zip(numbers, expected, strict=True), 1):
        version = project.version(number)
        assert same(levels(engine, project, number), codes.levels)
        assert (version.title, version.take) == (f"new piece, take {take}", take)
        assert (version.seed, version.n_samples, version.seconds, version.kind) == (7, 16000, 2.0, "new")
    assert project.shown == numbers[0]
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert seen[0][1] == "level 0 (the finest is 2)"


def test_without_a_seed_pieces_differ_and_can_be_made_again(engine: Engine, project: Project) -> None:
    first, second = (make(engine, project, seed=None) for _ in range(2))
    assert not same(levels(engine, project, first), levels(engine, project, second))
    again = make(engine, project, seed=project.version(first).seed)
    assert same(levels(engine, project, first), levels(engine, project, again))


def test_settings_reach_the_level_that_they_are_for(engine: Engine, project: Project) -> None:
    """Greedy below: the same top level always has the same details."""
    settings = {"temperature": [1, 0, 0], "top_k": [0, 0, 0], "top_p": [1, 1, 1], "guidance": [2, 2, 2]}
    piece = make(engine, project, settings=settings)  # guidance is left out, because there is nothing to follow
    [other] = do(engine, project, "rerender", piece, seed=99, settings=settings, keep_levels=1)
    assert same(levels(engine, project, piece), levels(engine, project, other))
    [free] = do(engine, project, "rerender", piece, seed=99, keep_levels=1)
    assert not same(levels(engine, project, piece), levels(engine, project, free))


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.5), (1.0, 0.0), (1.0, 1.0)])
def test_continuing_keeps_the_codes_bit_for_bit(engine: Engine, project: Project, before: float, after: float) -> None:
    piece = make(engine, project, 1.9)
    [longer] = do(engine, project, "extend", piece, seed=5, before=before, after=after)
    top = 256
    lead = math.ceil(before * 8000 / top) * top
    n_kept = round(1.9 * 8000) // top * top
    assert project.version(longer).n_samples == lead + round(1.9 * 8000) + round(after * 8000)
    pairs = zip(levels(engine, project, piece), levels(engine, project, longer), (256, 128, 64), strict=True)
    for old, new, hop in pairs:
        assert torch.equal(new[lead // hop : (lead + n_kept) // hop], old[: n_kept // hop])
    assert (project.version(longer).parent, project.version(longer).kind) == (piece, "change")


@pytest.mark.parametrize("keep_levels", [0, 1])
def test_a_stretch_is_drawn_anew_and_nothing_else(engine: Engine, project: Project, keep_levels: int) -> None:
    piece = make(engine, project)
    [changed] = do(engine, project, "redraw", piece, seed=5, start=0.8, end=1.2, keep_levels=keep_levels)
    start, end = math.floor(0.8 * 8000 / 256) * 256, math.ceil(1.2 * 8000 / 256) * 256
    pairs = zip(levels(engine, project, piece), levels(engine, project, changed), (256, 128, 64), strict=True)
    for i, (old, new, hop) in enumerate(pairs):
        assert torch.equal(new[: start // hop], old[: start // hop])
        assert torch.equal(new[end // hop :], old[end // hop :])
        assert torch.equal(new, old) == (i < keep_levels)
    assert project.version(changed).title == "new from 0.8 to 1.2 s"
    [again] = do(engine, project, "redraw", changed, seed=5, start=0.8, end=1.2)  # its own seed would change nothing
    assert project.version(again).seed != 5
    assert not torch.equal(levels(engine, project, again)[2], levels(engine, project, changed)[2])


def test_varying_changes_some_stretches_of_each_take(engine: Engine, project: Project) -> None:
    piece = make(engine, project, 6.0)
    changed = []
    for number in do(engine, project, "vary", piece, seed=3, takes=3, percent=100 / 3):
        where = levels(engine, project, number)[0] != levels(engine, project, piece)[0]
        cells = {int(i) * 256 // 8000 for i in where.nonzero().flatten()}
        assert 1 <= len(cells) <= 4  # two seconds of six, rounded outward to whole codes
        changed.append(frozenset(cells))
    assert len(set(changed)) > 1
    [whole] = do(engine, project, "vary", piece, seed=3, percent=100)
    assert same(levels(engine, project, whole), engine.generator.sample_codes(6.0, seed=3)[0].levels)


def test_new_details_keep_the_coarser_levels(engine: Engine, project: Project) -> None:
    piece = make(engine, project)
    for keep_levels in (1, 2):
        [number] = do(engine, project, "rerender", piece, seed=8, keep_levels=keep_levels)
        pairs = zip(levels(engine, project, piece), levels(engine, project, number), strict=True)
        assert [torch.equal(a, b) for a, b in pairs] == [i < keep_levels for i in range(3)]
    with pytest.raises(ValueError, match="fewer levels to keep"):
        do(engine, project, "rerender", piece, keep_levels=3)


@pytest.mark.parametrize(("kind", "request_", "words"), [
    ("make", {"seconds": 9}, "up to 8 s long here, and this would be 9.0 s"), ("make", {}, "above 0 s"),
    ("make", {"seconds": 1, "takes": 4}, "takes: expected 1 to 3, found 4"),
    ("make", {"seconds": 1, "text": "loud"}, "trained without texts"),
    ("make", {"seconds": 1, "labels": {"genre": "jazz"}}, "expected one of: folk, rock"),
    ("make", {"seconds": 1, "settings": {"heat": [1]}}, "found heat"),
    ("make", {"seconds": 1, "settings": {"top_p": [2, 2, 2]}}, "top_p"),
    ("extend", {"after": -1}, "none negative"), ("extend", {}, "nothing is left to draw"), ("extend", {"after": 7}, "up to 8 s long here"),
    ("redraw", {"start": 3, "end": 4}, "within the piece of 2 s"), ("vary", {"percent": 0}, "up to 100 %"),
    ("extend", {"version": 7, "after": 1}, "no version 7"), ("vary", {"version": None}, "no version None"),
])  # fmt: skip
def test_impossible_requests_are_refused(
    engine: Engine, project: Project, kind: str, request_: dict[str, Any], words: str
) -> None:
    piece = make(engine, project)
    with pytest.raises(ValueError, match=words):
        do(engine, project, kind, **{"version": piece} | request_)
    assert [version.number for version in project.versions] == [piece]


# --- projects ---------------------------------------------------------------------------------------------------------


def test_a_project_is_on_the_disk_after_every_change(engine: Engine, project: Project) -> None:
    piece = make(engine, project)
    [longer] = do(engine, project, "extend", piece, after=1)
    [varied] = do(engine, project, "vary", longer, percent=50)
    other = make(engine, project)
    with engine.library.changing(project):
        project.name, project.starred, project.version(piece).title = "Mine", True, "the beginning"
    found = reread(engine).get(project.id, "", engine.hash)
    assert found == project
    before = levels(engine, project, piece)
    engine.library.delete_version(project, longer)  # and what was made from it
    assert [version.number for version in project.versions] == [piece, other]
    assert sorted(path.name for path in engine.library.folder(project).glob("codes/*")) == ["1.codes", "4.codes"]
    assert same(levels(engine, project, piece), before)
    assert make(engine, project) == varied + 2  # a number is never used again
    engine.library.delete_version(project, 5)
    assert project.shown == other  # it was made from nothing
    engine.library.delete(project)
    assert not engine.library.folder(project).exists()
    assert not reread(engine).mine("", engine.hash)


def test_a_kill_between_codes_and_project_loses_nothing_else(engine: Engine, project: Project) -> None:
    piece = make(engine, project)
    engine.codes(project, piece).save(engine.library.codes_path(project, piece + 1))  # killed after this
    engine.library = engine.sounds.library = reread(engine)
    again = engine.library.get(project.id, "", engine.hash)
    assert [version.number for version in again.versions] == [piece]
    assert make(engine, again, 1.0) == piece + 1
    assert engine.codes(again, piece + 1).seconds == 1.0


def test_a_failed_change_leaves_the_project_as_it_was(engine: Engine, project: Project) -> None:
    make(engine, project)
    before = (engine.library.folder(project) / "project.json").read_bytes()

    def fail() -> None:
        with engine.library.changing(project):
            project.name = "half"
            project.version(9)

    with pytest.raises(Refused, match="no version 9"):
        fail()
    assert project.name == "Untitled"
    assert (engine.library.folder(project) / "project.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b'{"format": "other"}', b"\xff" * 40, b"[" * 100_000])
def test_damaged_projects_are_set_aside_with_a_sentence(
    engine: Engine, project: Project, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engine.library.folder(project) / "project.json"
    path.write_bytes(content)
    assert not reread(engine).mine("", engine.hash)
    said = capsys.readouterr()
    assert "set aside as" in said.out + said.err
    assert path.with_name("project.json.damaged").read_bytes() == content
    assert not path.exists()


def test_limits_of_versions_projects_and_space_are_named(engine: Engine, project: Project) -> None:
    for _ in range(3):
        do(engine, project, "make", seconds=0.1, takes=3)
    with pytest.raises(Refused, match="9 versions of at most 9; delete some"):
        make(engine, project)
    (engine.library.folder(project) / "recordings" / "x.wav").write_bytes(bytes(1 << 20))
    engine.library.limits = dataclasses.replace(LIMITS, quota_mb=0.5)
    with pytest.raises(Refused, match=r"would have 1\.\d MB of at most 0.5 MB; delete some"):
        engine.library.create(Project(tokenizer_hash=engine.hash))
    engine.library.create(Project(tokenizer_hash=engine.hash, owner="somebody else"))  # has its own quota
    engine.library.limits = dataclasses.replace(LIMITS, total_mb=0.5)
    with pytest.raises(Refused, match="disk space of this studio is used up"):
        engine.library.create(Project(tokenizer_hash=engine.hash, owner="somebody else"))
    engine.library.limits = dataclasses.replace(LIMITS, max_projects=1)
    with pytest.raises(Refused, match="you have 1 projects"):
        engine.library.create(Project(tokenizer_hash=engine.hash))


def test_projects_are_their_owners_and_their_models(engine: Engine) -> None:
    library = engine.library
    mine, _, foreign = (
        library.create(Project(tokenizer_hash=identity, owner=owner))
        for identity, owner in ((engine.hash, "me"), (engine.hash, "you"), ("f" * 64, "me"))
    )
    assert library.mine("me", engine.hash) == [mine]
    with pytest.raises(Refused, match="no such project"):
        library.get(mine.id, "you", engine.hash)
    with pytest.raises(Refused, match="another model"):
        library.get(foreign.id, "me", engine.hash)


# --- projects as files ------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(engine: Engine, project: Project, tmp_path: Path) -> Path:
    """A project with a recording and a change of it as one file."""
    soundfile.write(tmp_path / "tune.flac", tones(3, 16000, channels=2), 16000)
    number = bring_in(engine, project, tmp_path / "tune.flac").number
    do(engine, project, "redraw", number, start=1, end=2)
    engine.export(project, tmp_path / "project.zip")
    return tmp_path / "project.zip"


def test_an_imported_project_is_the_exported_one(engine: Engine, project: Project, exported: Path) -> None:
    again = engine.import_(exported, "somebody")
    assert again.model_dump(exclude={"id", "owner"}) == project.model_dump(exclude={"id", "owner"})
    assert (again.owner, again.id != project.id) == ("somebody", True)
    for number in (1, 2):
        assert same(levels(engine, again, number), levels(engine, project, number))
        paths = [engine.sounds.version(p, number, Export()) for p in (project, again)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_piece_that_was_made_as_long_as_possible_is_imported(
    engine: Engine, project: Project, tmp_path: Path
) -> None:
    do(engine, project, "extend", make(engine, project), before=5.999)  # rounded up to whole codes of the top level
    assert project.versions[-1].seconds > LIMITS.max_seconds
    engine.export(project, tmp_path / "long.zip")
    assert len(engine.import_(tmp_path / "long.zip", "").versions) == 2


Change = Callable[[dict[str, Any], dict[str, bytes]], object]
HOSTILE: dict[str, tuple[Change, str]] = {
    "traversal": (lambda p, f: p["recordings"][0].update(id="../../../etc/x"), "recordings.0.id"),
    "suffix": (lambda p, f: p["recordings"][0].update(suffix="/../x"), "recordings.0.suffix"),
    "id": (lambda p, f: p.update(id=".."), r"\(id: "),
    "circle": (lambda p, f: p["versions"][0].update(parent=2), "does not fit into the tree"),
    "numbers": (lambda p, f: p.update(next_number=1), "contradict"),
    "infinite": (lambda p, f: p["versions"][0].update(seconds=1e999), "versions.0.seconds"),
    "unknown key": (lambda p, f: p.update(html="<script>"), "html"),
    "no codes": (lambda p, f: f.pop("codes/1.codes"), "not a whole project"),
    "no project": (lambda p, f: f.pop("project.json"), "not a whole project"),
    "other codes": (lambda p, f: f.update({"codes/1.codes": f["codes/1.codes"][:-9]}), "version 1: not a codes file"),
    "other length": (lambda p, f: p["versions"][0].update(n_samples=5), "not those that the project describes"),
    "other sound": (lambda p, f: p["recordings"][0].update(sample_rate=8000), "not the recording"),
    "text as sound": (lambda p, f: f.update({next(n for n in f if "rec" in n): b"text"}), "tune.flac: not audio"),
    "other model": (lambda p, f: p.update(tokenizer_hash="0" * 64), "another model"),
    "stretches": (lambda p, f: p["versions"][1]["kept"].update(stretches=[[0, 10**12]]), "not within it"),
    "start": (lambda p, f: p["versions"][1]["kept"].update(source_start=10**12), "begins after its end"),
    "many versions": (lambda p, f: p.update(versions=p["versions"][:1] * 20_000), "versions: List should have"),
    "bomb": (lambda p, f: f.update({"codes/1.codes": bytes(30 << 20)}), "30.0 MB of at most 20 MB"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_project_files_are_refused(engine: Engine, exported: Path, what: str, tmp_path: Path) -> None:
    change, words = HOSTILE[what]
    with zipfile.ZipFile(exported) as file:
        files = {name: file.read(name) for name in file.namelist()}
    facts = json.loads(files["project.json"])
    files = {"project.json": b"", **files}
    change(facts, files)
    if "project.json" in files:
        files["project.json"] = json.dumps(facts).encode()
    files["../../evil"] = b"is not even read"
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    engine.library.limits = dataclasses.replace(LIMITS, quota_mb=20)
    found = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words) as error:
        engine.import_(tmp_path / "hostile.zip", "")
    assert "\n" not in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*")) == found
    assert len(engine.library.mine("", engine.hash)) == 1


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_no_projects(engine: Engine, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(Refused, match=r"not a (whole )?project"):
        engine.import_(tmp_path / "x.zip", "")


# --- recordings -------------------------------------------------------------------------------------------------------


def test_a_changed_recording_keeps_its_sound_outside_the_change(
    engine: Engine, project: Project, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "tune.flac", tones(3, 16000, channels=2), 16000)
    version = bring_in(engine, project, tmp_path / "tune.flac")
    expected = engine.tokenizer.encode_file(tmp_path / "tune.flac")
    assert same(levels(engine, project, version.number), expected.levels)
    assert (version.kind, version.title, version.seconds) == ("recording", "tune.flac", 3.0)
    original = samples(tmp_path / "tune.flac").astype(int)
    shown = engine.sounds.version(project, version.number, Export())
    assert np.abs(samples(shown) - original).max() <= 1
    assert np.array_equal(samples(engine.sounds.recording(project, project.recordings[0])), samples(shown))
    as_codes = samples(engine.sounds.version(project, version.number, Export(levels=2)))
    assert np.array_equal(as_codes, decoded(engine.generator, expected, 2))
    [changed] = do(engine, project, "redraw", version.number, start=1, end=2)
    [longer] = do(engine, project, "extend", changed, after=1)
    for number, seconds in ((changed, 3), (longer, 4)):
        path = engine.sounds.version(project, number, Export())
        sound = samples(path).astype(int)
        assert (soundfile.info(path).samplerate, sound.shape) == (16000, (16000 * seconds, 2))
        start = slice(0, 15000)  # the stretch is rounded outward, and there is a cross-fade
        assert np.abs(sound[start] - original[start]).max() <= 1
        assert np.abs(sound[33100:46000] - original[33100:46000]).max() <= 1
        assert np.abs(sound[18000:30000] - original[18000:30000]).max() > 100
    [codes_only] = do(engine, project, "redraw", version.number, start=1, end=2, keep_audio=False)
    path = engine.sounds.version(project, codes_only, Export())
    assert np.array_equal(samples(path), decoded(engine.generator, engine.codes(project, codes_only)))
    engine.library.delete_version(project, version.number)
    assert (project.versions, project.recordings) == ([], [])
    assert not list(engine.library.folder(project).glob("recordings/*"))


def test_of_a_long_recording_the_beginning_is_used(engine: Engine, project: Project, tmp_path: Path) -> None:
    tune = tones(9.5, 8000)
    soundfile.write(tmp_path / "long.wav", tune, 8000)
    version = bring_in(engine, project, tmp_path / "long.wav")
    assert project.recordings[0].note == "only its first 8 s are used"
    assert (version.n_samples, project.recordings[0].n_samples) == (64000, 64000)
    waveform = torch.from_numpy(samples(tmp_path / "long.wav")[:64000, 0] / 32768).float()
    expected = engine.tokenizer.encode(waveform, 8000)
    assert same(levels(engine, project, version.number), expected.levels)


def test_codes_can_be_opened_again(engine: Engine, project: Project) -> None:
    piece = make(engine, project)
    path = engine.library.folder(project) / "recordings" / f"incoming-{'cd' * 8}.codes"
    path.write_bytes(engine.library.codes_path(project, piece).read_bytes())
    job = engine.open(project, path, "saved.codes")
    [number] = job.work(job)
    assert same(levels(engine, project, number), levels(engine, project, piece))
    assert project.recordings == []
    assert not path.exists()


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Bad files, and the error message of each."""
    tune = tones(1, 8000)
    soundfile.write(tmp_path / "half.wav", tune, 8000)
    whole = (tmp_path / "half.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp3").write_text("no music at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.codes").write_text("{}")
    soundfile.write(tmp_path / "odd.wav", tune, 999)
    other = Codes([torch.zeros(10, dtype=torch.int64)], 8000, 8000, [800], 16, 1, "f" * 64)
    other.save(tmp_path / "other.codes")
    words = {
        "half.wav": "truncated", "text.mp3": "not audio that can be read", "empty.wav": "empty file",
        "text.codes": "not a codes file", "odd.wav": "found 999$", "other.codes": "another model",
    }  # fmt: skip
    return {name: (tmp_path / name, text) for name, text in words.items()}


def test_bad_recordings_give_one_friendly_line(
    engine: Engine, project: Project, bad_files: dict[str, tuple[Path, str]]
) -> None:
    for name, (path, text) in bad_files.items():
        with pytest.raises(ValueError, match=text) as error:
            bring_in(engine, project, path)
        assert str(error.value).startswith(f"{name}: ")
        assert str(engine.library.root) not in str(error.value)
        assert "\n" not in str(error.value)
    assert (project.versions, project.recordings) == ([], [])
    assert not list(engine.library.folder(project).glob("recordings/*"))


def test_what_can_be_followed(bad_files: dict[str, tuple[Path, str]]) -> None:
    for path, text in (bad_files[name] for name in ("text.mp3", "odd.wav")):
        with pytest.raises(ValueError, match=text):
            check_reference(path, path.name, LIMITS)
    check_reference(TRACK, "mist", Limits())
    with pytest.raises(ValueError, match=r"mist: 50\.4 s; up to 8 s can be followed"):
        check_reference(TRACK, "mist", LIMITS)


def test_a_recording_unlike_the_training_music_is_said_to_be_so(
    engine: Engine, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((engine.folder / "report.json").read_text())
    assert engine.training_bits == pytest.approx(sum(level["bits_per_second"] for level in report["levels"]))
    soundfile.write(tmp_path / "tune.wav", tones(2, 8000), 8000)
    [bits] = engine.generator.bits_per_second([engine.tokenizer.encode_file(tmp_path / "tune.wav")])
    for known, is_warned in ((bits, False), (bits / 2, True), (None, False)):
        monkeypatch.setattr(engine, "training_bits", known)
        version = bring_in(engine, project, tmp_path / "tune.wav")
        assert bool(version.warning) == is_warned
        if version.warning:
            assert f"(it needs {bits:.0f} bits a second, the training music {bits / 2:.0f}" in version.warning


def test_the_bundled_models_card_says_its_bits() -> None:
    assert training_bits(bundled_model()) == pytest.approx(71.1 + 102 + 130 + 76.2)


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "rate", "most"), [("wav", 8000, 0), ("flac", 8000, 0), ("opus", 8000, None),
                                                    ("mp3", 16000, None)])  # fmt: skip
def test_exports_have_the_sound_and_its_tags(
    engine: Engine, project: Project, form: Any, rate: int, most: int | None
) -> None:
    number = make(engine, project, labels={"genre": "folk"})
    expected = decoded(engine.generator, engine.codes(project, number))
    path = engine.sound(project, project.version(number), Export(format=form, download=True))
    assert path.suffix == f".{form}"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, round(info.duration, 1)) == (rate, 1, 2.0)
    if most is not None:
        assert np.array_equal(samples(path), expected)
    with soundfile.SoundFile(path) as file:
        tags = file.copy_metadata()
    assert tags["title"] == "Untitled"
    assert tags["comment"] == "tiny, seed 1, genre folk"
    assert mutagen.File(path) is not None  # type: ignore[attr-defined]
    plain = engine.sound(project, project.version(number), Export(format=form))
    with soundfile.SoundFile(plain) as file:
        assert "title" not in file.copy_metadata()


def test_24_bits_and_loudness(engine: Engine, project: Project) -> None:
    number = make(engine, project)
    wave = engine.tokenizer.decode(engine.codes(project, number))
    path = engine.sounds.version(project, number, Export(bits="24"))
    assert soundfile.info(path).subtype == "PCM_24"
    assert np.abs(soundfile.read(path)[0] - wave[0].numpy()).max() < 2**-22
    found, target = loudness(wave, 8000), loudness(wave, 8000) - 6
    quiet = soundfile.read(engine.sounds.version(project, number, Export(bits="24", lufs=target)))[0]
    assert loudness(torch.from_numpy(quiet)[None].float(), 8000) == pytest.approx(target, abs=0.1)
    loud = soundfile.read(engine.sounds.version(project, number, Export(bits="24", lufs=0.0)))[0]
    assert found < 0
    assert np.abs(loud).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)  # peaks stay below -1 dBFS


def test_sounds_used_last_stay_and_others_go(engine: Engine, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    number = make(engine, project)
    monkeypatch.setattr(sounds, "CACHE_MB", 0.07)  # two sounds of 32 kB
    first, second = (engine.sounds.version(project, number, Export(levels=n)) for n in (1, 2))
    engine.sounds.version(project, number, Export(levels=1))
    third = engine.sounds.version(project, number, Export(levels=3))
    assert [path.exists() for path in (first, second, third)] == [True, False, True]


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue(LIMITS)
    yield made
    made.close()


def waits(go_on: threading.Event, numbers: list[int]) -> Callable[[Job], list[int]]:
    """Work that reports until it may go on."""

    def work(job: Job) -> list[int]:
        while not go_on.wait(0.01):
            job.report(0.5, "half")
        return numbers

    return work


def settle(*jobs: Job) -> None:
    for _ in range(3000):
        if all(job.state not in ("waiting", "running") for job in jobs):
            return
        threading.Event().wait(0.01)
    raise AssertionError([job.state for job in jobs])


def test_jobs_wait_for_their_turn_and_stop_at_once(queue: Queue) -> None:
    go_on = threading.Event()
    running, waiting, last = (
        queue.put(Job("p", owner, "make", "x", waits(go_on, [i]))) for i, owner in enumerate("aab")
    )
    assert [queue.place(job) for job in (waiting, last)] in ([1, 2], [2, 3])
    discarded: list[str] = []
    waiting.discard = running.discard = last.discard = lambda: discarded.append("x")
    queue.stop(waiting)
    assert (waiting.state, discarded) == ("stopped", ["x"])
    while running.state != "running" or not running.progress:
        threading.Event().wait(0.01)
    assert queue.place(last) == 1
    assert queue.describe(running)["seconds_left"] is not None
    queue.stop(running)
    settle(running)
    assert running.state == "stopped"
    go_on.set()
    settle(last)
    assert (last.state, last.versions, last.progress) == ("done", [2], 1.0)
    assert discarded == ["x", "x"]  # what is done stays
    assert [job.state for job in queue.of_project("p")] == ["stopped", "stopped", "done"]


def test_a_visitor_cannot_fill_the_queue(queue: Queue) -> None:
    go_on = threading.Event()
    jobs = [queue.put(Job("p", "greedy", "make", "x", waits(go_on, []))) for _ in range(3)]
    with pytest.raises(Refused, match="2 of your requests wait already"):
        queue.put(Job("p", "greedy", "make", "x", waits(go_on, [])))
    jobs.append(queue.put(Job("p", "other", "make", "x", waits(go_on, []))))
    go_on.set()
    settle(*jobs)


@pytest.mark.parametrize(("error", "words"), [(ValueError("too\nlong"), "too long"),
                                              (KeyError("x"), "internal error: KeyError: 'x'")])  # fmt: skip
def test_failures_are_one_sentence_and_the_next_job_runs(queue: Queue, error: Exception, words: str) -> None:
    def fail(job: Job) -> list[int]:
        raise error

    failed, after = (queue.put(Job("p", "", "make", "x", work)) for work in (fail, lambda job: [1]))
    settle(failed, after)
    assert (failed.state, failed.error, after.state) == ("failed", words, "done")


def test_a_stopped_piece_leaves_the_project_as_it_was(
    engine: Engine, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(engine, project, 0.5)
    job = engine.job(project, JobRequest(kind="make", seconds=4, seed=1))
    report = job.report
    monkeypatch.setattr(job, "report", lambda *progress: (report(*progress), progress[0] > 0.5 and job.stop.set()))
    with pytest.raises(Stopped):
        job.work(job)
    assert [version.number for version in project.versions] == [1]


def test_a_change_of_a_deleted_version_fails_with_a_sentence(engine: Engine, project: Project) -> None:
    piece = make(engine, project)
    job = engine.job(project, JobRequest(kind="vary", version=piece, percent=50))
    engine.library.delete_version(project, piece)
    with pytest.raises(Refused, match=f"no version {piece}"):
        job.work(job)
    assert project.versions == []


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets", "platformdirs"])
def test_without_a_package_the_command_says_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert_one_line_error(cli("studio"), f"{package} is missing", "pip install 'audiovq[studio]'")
