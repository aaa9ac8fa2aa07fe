"""The studio without its page: versions, changes, uploads, pictures, and several people at once."""

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import TRACK, assert_one_line_error, cli, tones
from matplotlib import image

from audiovq import Codes, Generator
from audiovq.report import code_images
from audiovq.report.code_images import HEIGHT, LEFT, RIGHT, WIDTH, draw_codes
from audiovq.studio import service as studio_service
from audiovq.studio import views
from audiovq.studio.service import Job, PieceRequest, Service, Session, Stopped, Takes
from audiovq.studio.uploads import Limits, Recording, check_reference
from audiovq.studio.versions import Tree

LIMITS = Limits(max_seconds=8, max_upload_mb=0.5, max_takes=3, max_versions=9)


def ignore(share: float, words: str) -> None:
    """For progress that a test does not look at."""


@pytest.fixture(scope="module")
def generator(tiny_run: Path) -> Generator:
    return Generator.from_pretrained(tiny_run)


@pytest.fixture
def service(generator: Generator, tmp_path: Path) -> Service:
    return Service(generator, tmp_path / "sessions", LIMITS)


@pytest.fixture
def session(service: Service) -> Session:
    return service.enter(None)


def finish(made: Iterator[Takes]) -> list[int]:
    """The numbers of the finished versions."""
    return [version.number for version in list(made)[-1].versions]


def job(session: Session, number: int | None = None, **request: Any) -> Job:
    return Job(session, PieceRequest(**request), ignore, number)


def make(service: Service, session: Session, seconds: float = 2.0, **request: Any) -> int:
    return finish(service.make(job(session, **{"seed": 1, **request}), seconds))[0]


def open_upload(service: Service, session: Session, path: Path) -> Recording:
    """The picture comes first, then the sound of each prefix."""
    counts = [len(recording.prefixes) for recording in service.open(session, path, ignore)]
    assert counts == list(range(len(counts)))
    assert session.recording is not None
    return session.recording


def levels(session: Session, number: int) -> list[torch.Tensor]:
    return session.tree.get(number).codes.levels


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16", always_2d=True)[0]


def decoded(generator: Generator, codes: Codes, n_levels: int | None = None) -> np.ndarray:
    """As 16-bit samples [n, channels]."""
    return (generator.tokenizer.decode(codes, n_levels) * 32767).round().to(torch.int16).T.numpy()


# --- the tree ---------------------------------------------------------------------------------------------------------


def some_codes(seconds: float = 1.0) -> Codes:
    return Codes([torch.arange(10)], round(8000 * seconds), 8000, [800], 16, 1, "f" * 64)


def test_a_tree_is_drawn_with_parents_above_their_children() -> None:
    tree = Tree()
    for title, parent in (("new", None), ("longer", 1), ("changed", 2), ("varied", 2), ("other", None), ("again", 1)):
        tree.add(title, some_codes(), parent)
    assert tree.lines() == [
        ("1 · new · 1.0 s", 1), ("├─ 2 · longer · 1.0 s", 2), ("│  ├─ 3 · changed · 1.0 s", 3),
        ("│  └─ 4 · varied · 1.0 s", 4), ("└─ 6 · again · 1.0 s", 6), ("5 · other · 1.0 s", 5),
    ]  # fmt: skip
    assert tree.parent(4) == 2
    assert {version.number for version in tree.delete(2)} == {2, 3, 4}
    assert [number for _, number in tree.lines()] == [1, 6, 5]
    assert tree.add("new", some_codes()).number == 7  # a number is never used again


def test_what_a_tree_refuses() -> None:
    tree = Tree(max_versions=2)
    with pytest.raises(ValueError, match="no version yet: make a piece first"):
        tree.get(None)
    tree.add("new", some_codes())
    with pytest.raises(ValueError, match="version 3: expected one of 1"):
        tree.add("of none", some_codes(), parent=3)
    with pytest.raises(ValueError, match="nothing to undo"):
        tree.parent(1)
    tree.add("longer", some_codes(), 1)
    with pytest.raises(ValueError, match="of at most 2: delete some"):
        tree.add("one too many", some_codes(), 1)


# --- making and changing ----------------------------------------------------------------------------------------------


def test_sketches_come_first_and_the_piece_is_the_generators(service: Service, session: Session) -> None:
    generator, progress = service.generator, []
    request = PieceRequest(seed=7, takes=2, labels={"genre": "folk"})
    on_the_way = service.make(Job(session, request, lambda share, words: progress.append((share, words))), 2.0)
    expected = generator.sample_codes(2.0, seed=7, n=2, labels={"genre": "folk"})
    for n_levels, takes in enumerate(on_the_way, 1):
        assert takes.n_levels == n_levels
        for sound, codes in zip(takes.sounds, expected, strict=True):
            assert np.array_equal(samples(sound), decoded(generator, codes, n_levels))
    assert [version.title for version in takes.versions] == ["new piece, take 1", "new piece, take 2"]
    for version, codes in zip(takes.versions, expected, strict=True):
        assert same(version.codes.levels, codes.levels)
        assert (version.seed, version.codes.n_samples) == (7, 16000)
    shares = [share for share, _ in progress]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert progress[0][1] == "level 0 (the finest is 2)"


def test_without_a_seed_pieces_differ_and_can_be_made_again(service: Service, session: Session) -> None:
    first, second = (make(service, session, seed=None) for _ in range(2))
    assert not same(levels(session, first), levels(session, second))
    again = make(service, session, seed=session.tree.get(first).seed)
    assert same(levels(session, first), levels(session, again))


def test_settings_reach_the_level_that_they_are_for(service: Service, session: Session) -> None:
    """Greedy below: the same top level always has the same details."""
    settings = {
        "temperature": [1.0, 0.0, 0.0],
        "top_k": [0, 0, 0],
        "top_p": [1.0, 1.0, 1.0],
        "guidance": [2.0, 2.0, 2.0],
    }
    piece = make(service, session, settings=settings)  # guidance is left out, because there is nothing to follow
    other = finish(service.rerender(job(session, piece, seed=99, settings=settings), 1))[0]
    assert same(levels(session, piece), levels(session, other))
    free = finish(service.rerender(job(session, piece, seed=99), 1))[0]
    assert not same(levels(session, piece), levels(session, free))


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.5), (1.0, 0.0), (1.0, 1.0)])
def test_continuing_keeps_the_codes_bit_for_bit(
    service: Service, session: Session, before: float, after: float
) -> None:
    piece = make(service, session, 1.9)
    longer = finish(service.extend(job(session, piece, seed=5), before, after))[0]
    top = 256
    lead = math.ceil(before * 8000 / top) * top
    n_kept = round(1.9 * 8000) // top * top
    assert session.tree.get(longer).codes.n_samples == lead + round(1.9 * 8000) + round(after * 8000)
    for old, new, hop in zip(levels(session, piece), levels(session, longer), (256, 128, 64), strict=True):
        assert torch.equal(new[lead // hop : (lead + n_kept) // hop], old[: n_kept // hop])
    assert session.tree.get(longer).parent == piece


@pytest.mark.parametrize("keep_levels", [0, 1])
def test_a_stretch_is_drawn_anew_and_nothing_else(service: Service, session: Session, keep_levels: int) -> None:
    piece = make(service, session)
    changed = finish(service.redraw(job(session, piece, seed=5), 0.8, 1.2, keep_levels))[0]
    start, end = math.floor(0.8 * 8000 / 256) * 256, math.ceil(1.2 * 8000 / 256) * 256
    for i, (old, new, hop) in enumerate(
        zip(levels(session, piece), levels(session, changed), (256, 128, 64), strict=True)
    ):
        assert torch.equal(new[: start // hop], old[: start // hop])
        assert torch.equal(new[end // hop :], old[end // hop :])
        assert torch.equal(new, old) == (i < keep_levels)
    assert session.tree.get(changed).title == "new from 0.8 to 1.2 s"


def test_varying_changes_some_stretches_of_each_take(service: Service, session: Session) -> None:
    piece = make(service, session, 6.0)
    takes = finish(service.vary(job(session, piece, seed=3, takes=3), 100 / 3))
    changed = []
    for number in takes:
        where = levels(session, number)[0] != levels(session, piece)[0]
        cells = {int(i) * 256 // 8000 for i in where.nonzero().flatten()}
        assert 1 <= len(cells) <= 4  # two seconds of six, rounded outward to whole codes
        changed.append(frozenset(cells))
    assert len(set(changed)) > 1
    whole = finish(service.vary(job(session, piece, seed=3), 100))[0]
    anew = service.generator.sample_codes(6.0, seed=3)[0]
    assert same(levels(session, whole), anew.levels)


def test_new_details_keep_the_coarser_levels(service: Service, session: Session) -> None:
    piece = make(service, session)
    for keep_levels in (1, 2):
        takes = list(service.rerender(job(session, piece, seed=8), keep_levels))
        new = takes[-1].versions[0].codes.levels
        assert [torch.equal(a, b) for a, b in zip(levels(session, piece), new, strict=True)] == [
            i < keep_levels for i in range(3)
        ]
        assert [t.n_levels for t in takes] == [1, 2, 3]
    with pytest.raises(ValueError, match="expected 1 to 2, found 3"):
        next(service.rerender(job(session, piece), 3))


def test_undo_gives_the_same_codes_and_the_same_sound(service: Service, session: Session) -> None:
    piece = make(service, session)
    before = [level.clone() for level in levels(session, piece)]
    sound = samples(session.files.sound(session.tree.get(piece)))
    longer = finish(service.extend(job(session, piece), 0, 1))[0]
    varied = finish(service.vary(job(session, longer), 50))[0]
    back = session.tree.parent(session.tree.parent(varied))
    assert back == piece
    assert same(levels(session, back), before)
    assert np.array_equal(samples(session.files.sound(session.tree.get(back))), sound)
    assert service.delete(session, longer) == piece
    assert service.delete(session, piece) is None
    assert not [path for path in session.files.folder.iterdir() if path.name.startswith("audiovq-")]


def test_downloads_have_the_decoded_samples(service: Service, session: Session) -> None:
    version = session.tree.get(make(service, session))
    expected = decoded(service.generator, version.codes)
    assert expected.shape == (16000, 1)
    path = session.files.sound(version)
    assert np.array_equal(samples(path), expected)
    assert soundfile.info(path).samplerate == 8000
    saved = Codes.load(session.files.codes(version))
    assert same(saved.levels, version.codes.levels)
    recording = open_upload(service, session, session.files.codes(version))  # saved codes can be opened again
    assert same(recording.codes.levels, version.codes.levels)
    assert np.array_equal(samples(recording.prefixes[-1]), expected)


@pytest.mark.parametrize(("request_", "seconds", "words"), [
    ({}, 9.0, "up to 8 s long here, and this would be 9.0 s"), ({}, 0.0, "above 0 s"), ({}, math.nan, "above 0 s"),
    ({"takes": 4}, 1.0, "takes: expected 1 to 3, found 4"), ({"seed": -1}, 1.0, "the seed must be a whole number"),
    ({"text": "loud"}, 1.0, "trained without texts"), ({"labels": {"genre": "jazz"}}, 1.0, "expected one of: folk, rock"),
])  # fmt: skip
def test_impossible_requests_are_refused(
    service: Service, session: Session, request_: dict[str, Any], seconds: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        list(service.make(job(session, **request_), seconds))
    assert not session.tree.versions


def test_a_piece_and_a_tree_grow_up_to_their_limits(service: Service, session: Session) -> None:
    piece = make(service, session, 1.0)
    with pytest.raises(ValueError, match="up to 8 s"):
        next(service.extend(job(session, piece), 4, 4))
    with pytest.raises(ValueError, match="the part must begin before it ends"):
        next(service.redraw(job(session, piece), 3, 2, 0))
    with pytest.raises(ValueError, match="how much to vary"):
        next(service.vary(job(session, piece), 0))
    for _ in range(2):
        make(service, session, 0.1, takes=3)
    with pytest.raises(ValueError, match="7 versions of at most 9"):
        next(service.make(job(session, takes=3), 0.1))


def test_growing_level_by_level_is_what_pieces_gives(generator: Generator) -> None:
    piece = generator.sample_codes(1.0, seed=1)[0]
    mask = generator.keep(piece, stretch=(0.2, 0.6))
    for given in (None, mask, generator.keep(piece, levels=1)):
        whole = list(generator.pieces(8000, 4, [0, 3], given=given))
        grown = list(generator.grow(8000, 4, [0, 3], given=given))
        assert [len(takes[0].levels) for takes in grown] == [1, 2, 3]
        for takes in grown:
            for codes, expected in zip(takes, whole, strict=True):
                assert same(codes.levels, expected.levels[: len(codes.levels)])
    with pytest.raises(ValueError, match="nothing is left to draw"):
        next(generator.grow(8000, 4, [0], given=generator.keep(piece)))


# --- several people ---------------------------------------------------------------------------------------------------


def test_every_user_has_a_session(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_service, "MAX_SESSIONS", 2)
    mine, yours = service.enter(None), service.enter("made up")
    assert yours.token != "made up"
    make(service, mine, 0.1)
    assert not yours.tree.versions
    assert service.enter(mine.token) is mine  # a page that is loaded again; now yours was unused for longest
    service.enter(None)
    assert not yours.files.folder.exists()
    with pytest.raises(ValueError, match="please reload"):
        service.session(yours.token)
    assert service.session(mine.token) is mine


def test_stopping_leaves_the_tree_as_it_was(service: Service) -> None:
    mine, yours = service.enter(None, "page 1"), service.enter(None, "page 2")
    make(service, mine, 0.5)
    on_the_way = service.make(job(mine), 4.0)
    next(on_the_way)
    service.stop("page 2")  # somebody else's page was closed
    assert yours.stop.is_set()
    next(on_the_way)
    service.stop("page 1")
    with pytest.raises(Stopped):
        next(on_the_way)
    assert list(mine.tree.versions) == [1]
    with pytest.raises(Stopped):  # it waited for its turn, and was stopped meanwhile
        next(service.make(job(mine), 0.5))
    service.renew_stop(mine.token)
    assert make(service, mine, 0.5) == 2


def test_stopped_work_stays_stopped_after_a_new_request(service: Service) -> None:
    mine = service.enter(None, "page")
    service.renew_stop(mine.token)
    stopped = service.make(job(mine), 4.0)
    next(stopped)
    service.stop("page")
    service.renew_stop(mine.token)
    new = service.make(job(mine), 0.5)
    with pytest.raises(Stopped):
        next(stopped)
    assert [len(takes.versions) for takes in new] == [0, 0, 1]
    service.renew_stop("made up")  # a session that was deleted is no error here


def test_warming_up_leaves_nothing(service: Service) -> None:
    service.warm_up()
    assert not list(service.folder.iterdir())


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_a_recording_is_encoded_and_changed(service: Service, session: Session, tmp_path: Path) -> None:
    tokenizer = service.generator.tokenizer
    soundfile.write(tmp_path / "tune.flac", tones(3, 16000, channels=2), 16000)
    recording = open_upload(service, session, tmp_path / "tune.flac")
    assert same(recording.codes.levels, tokenizer.encode_file(tmp_path / "tune.flac").levels)
    difference = samples(recording.original).astype(int) - samples(tmp_path / "tune.flac")
    assert np.abs(difference).max() <= 1
    for k, path in enumerate(recording.prefixes, 1):
        assert np.array_equal(samples(path), decoded(service.generator, recording.codes, k))
    words, players = views.recording_players(recording)
    assert words == "**tune.flac**: 3.0 s, as the model hears it."
    assert [value["title"] for value in players] == ["tune.flac", "Level 0", "Levels 0 and 1", "All 3 levels"]
    assert players[2]["note"] == "94 codes per second, 0.38 kbit/s"  # 31.25 + 62.5, of 4 bits each
    version = service.adopt(session)
    longer = finish(service.extend(job(session, version.number, seed=1), 0, 1))[0]
    assert torch.equal(levels(session, longer)[0][:93], recording.codes.levels[0][:93])
    make(service, session, 0.1)
    assert recording.prefixes[0].exists()  # what is made meanwhile does not take it from the page


def test_of_a_long_recording_the_beginning_is_used(service: Service, session: Session, tmp_path: Path) -> None:
    tune = tones(9.5, 8000)
    soundfile.write(tmp_path / "long.wav", tune, 8000)
    recording = open_upload(service, session, tmp_path / "long.wav")
    assert recording.note == "only its first 8 s are used"
    assert recording.codes.n_samples == 64000
    expected = service.generator.tokenizer.encode(
        torch.from_numpy(samples(tmp_path / "long.wav")[:64000, 0] / 32768).float(), 8000
    )
    assert same(recording.codes.levels, expected.levels)


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Bad files, and the error message of each."""
    tune = tones(1, 8000)
    soundfile.write(tmp_path / "half.wav", tune, 8000)
    whole = (tmp_path / "half.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp3").write_text("no music at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "large.wav").write_bytes(bytes(600_000))
    (tmp_path / "text.codes").write_text("{}")
    soundfile.write(tmp_path / "odd.wav", tune, 999)
    dataclasses.replace(some_codes(), levels=[torch.zeros(10, dtype=torch.int64)]).save(tmp_path / "other.codes")
    words = {
        "half.wav": "truncated", "text.mp3": "not audio that can be read", "empty.wav": "empty file",
        "large.wav": "0.6 MB; files may have up to 0.5 MB", "text.codes": "not a codes file", "odd.wav": "found 999$",
        "other.codes": "another model", "gone.wav": "drop the file again",
    }  # fmt: skip
    return {name: (tmp_path / name, text) for name, text in words.items()}


def test_bad_uploads_give_one_friendly_line(
    service: Service, session: Session, bad_files: dict[str, tuple[Path, str]]
) -> None:
    for name, (path, text) in bad_files.items():
        with pytest.raises(ValueError, match=text) as error:
            open_upload(service, session, path)
        assert str(error.value).startswith(f"{name}: ")
        assert str(path) not in str(error.value)
        assert "\n" not in str(error.value)
        assert session.recording is None
    with pytest.raises(ValueError, match="drop one first"):
        service.adopt(session)


def test_what_can_be_followed(bad_files: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    for path, text in (bad_files[name] for name in ("text.mp3", "large.wav", "odd.wav", "gone.wav")):
        with pytest.raises(ValueError, match=text):
            check_reference(path, LIMITS)
    check_reference(TRACK, Limits())
    with pytest.raises(ValueError, match="up to 8 s can be followed"):
        check_reference(TRACK, Limits(max_seconds=8))


# --- what the page shows ----------------------------------------------------------------------------------------------


def test_controls_of_the_page_become_a_request(service: Service) -> None:
    def from_controls(values: list[Any]) -> PieceRequest:
        return PieceRequest.from_controls(values, list(service.generator.labels), service.n_levels)

    settings = [0.9, 0.8, 0.7, 1.0, 0.9, 0.8, 5, 6.0, 7, 1, 2, 3]
    request = from_controls(["12", "2", "", None, "folk", *settings])
    assert request == PieceRequest(12, 2, {"genre": "folk"}, "", None, {
        "temperature": [0.9, 0.8, 0.7], "top_p": [1.0, 0.9, 0.8], "top_k": [5, 6, 7], "guidance": [1, 2, 3],
    })  # fmt: skip
    assert request.options.guidance == [1, 2, 3]
    free = from_controls(["", 1, None, None, "", *settings])
    assert (free.seed, free.labels, free.text) == (None, {}, "")
    assert free.options.guidance is None
    with pytest.raises(ValueError, match="found minus one"):
        from_controls(["minus one", 1, "", None, "", *settings])


def test_values_of_players_and_links(service: Service, session: Session) -> None:
    number = make(service, session, takes=2)
    version, files = session.tree.get(number), session.files
    shown, link = views.version_player(version, files), views.version_downloads(version, files)
    assert shown["title"] == "Version 1 · new piece, take 1 · 2.0 s"
    assert shown["note"].startswith("A beginning, seed 1.")
    assert shown["sound"].startswith("gradio_api/file=/")
    assert link.count("<a ") == 2
    assert 'download="audiovq-1.wav"' in link
    assert views.take_player(session.takes[1], files, 1)["title"] == "Take 2"
    assert views.address(Path("/a b/#1.wav")) == "gradio_api/file=/a%20b/%231.wav"


def test_a_picture_has_the_codes_in_their_places(tmp_path: Path) -> None:
    top = torch.tensor([3, 9, 3, 12])
    codes = Codes([top, torch.arange(8)], 8000, 8000, [2000, 1000], 16, 1, "f" * 64)
    draw_codes(torch.from_numpy(tones(1, 8000).T.copy()), 8000, codes, tmp_path / "x.png")
    pixels = image.imread(tmp_path / "x.png")
    assert pixels.shape[:2] == (HEIGHT, WIDTH)
    row = round(HEIGHT * (1 - code_images.TOP + code_images.STRIPS / 4))  # the middle of the upper one of two strips
    cells = [round(WIDTH * (LEFT + (RIGHT - LEFT) * (i + 0.25) / 4)) for i in range(4)]
    first, second, third, fourth = (pixels[row, column, :3] for column in cells)
    assert np.array_equal(first, third)
    assert len({tuple(colour) for colour in (first, second, fourth)}) == 3


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_one_line_error(cli("studio"), "gradio is missing", "pip install 'audiovq[studio]'")
