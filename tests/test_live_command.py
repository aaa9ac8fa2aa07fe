"""`audiovq live`: the player, OSC and MIDI, and the command, without sound hardware."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_bundle_builder import OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.osc_server import BlockingOSCUDPServer
from pythonosc.udp_client import SimpleUDPClient

from audiovq.api import Generator, Live
from audiovq.data.codes import Codes
from audiovq.live.controls import Controls
from audiovq.live.midi import midi_input
from audiovq.live.osc import osc_server
from audiovq.live.player import Player, null_device, write


@pytest.fixture
def live(tiny_run: Path) -> Live:
    return Generator.from_pretrained(tiny_run, "cpu").live(seed=5, precision="fp32")


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# --- the player -------------------------------------------------------------------------------------------------------


def test_the_player_gives_the_music_in_order_from_a_bounded_buffer(live: Live, tiny_run: Path) -> None:
    expected = Generator.from_pretrained(tiny_run, "cpu").live(seed=5, precision="fp32").read(2)
    with Player(live, 0.2) as player:
        wait(lambda: len(player.ready) >= player.n_wanted)
        time.sleep(0.1)
        assert len(player.ready) < player.n_wanted + 8000  # the buffer and one block
        taken = []
        while sum(map(len, taken)) < 16000:
            wait(lambda: (len(player.ready) >= 321 and not player.filling) or len(player.ready) >= player.n_wanted)
            taken.append(player.take(321))
        assert player.underruns == 0
    assert np.array_equal(np.concatenate(taken)[:16000].T, expected.numpy())


def test_an_empty_buffer_is_a_pause_and_a_line(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, lines, original = threading.Semaphore(0), [], Live._block

    def slow(self: Live) -> torch.Tensor:
        gate.acquire()
        time.sleep(0.05)
        return original(self)

    monkeypatch.setattr(Live, "_block", slow)
    with Player(live, 0.01, lines.append) as player:
        assert not player.take(100).any()
        assert player.underruns == 0  # it never began
        gate.release()
        wait(lambda: len(player.ready) >= player.n_wanted)
        n = len(player.ready)
        sound = player.take(n + 50)
        assert sound[:n].any()
        assert not sound[n:].any()
        assert (player.underruns, player.filling) == (1, True)
        gate.release(20)
        wait(lambda: lines)
        assert not player.filling or player.take(1).shape == (1, 1)
        gate.release(1000)
    assert "of music a second" in lines[0]
    assert len(lines) == 1


def test_a_machine_that_is_too_slow_says_so_before_the_first_sound_and_on_a_pipe(
    live: Live, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("audiovq.live.player.SLOW_SECONDS", 0.0)
    monkeypatch.setattr(Live, "_block", lambda self: torch.zeros(1, 8).add(time.sleep(0.05) or 0.1))  # 1 ms of music
    lines: list[str] = []
    with Player(live, 60, lines.append) as player:
        wait(lambda: lines)
        assert player.underruns == 0
    assert "of music a second" in lines[0]
    write(live, "-", 0.004, lambda: False)
    assert "of music a second" in capfd.readouterr().err
    with pytest.raises(ValueError, match="add --seconds"):
        write(live, "x.wav", None, lambda: False)


def test_an_error_while_playing_is_a_line(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Live) -> torch.Tensor:
        raise ValueError("prior 0: expected finite logits")

    monkeypatch.setattr(Live, "_block", broken)
    with Player(live) as player, null_device(player):
        wait(player.stopped.is_set)
        assert not player.take(10).any()
    assert player.error == "prior 0: expected finite logits"


@pytest.mark.skipif(shutil.which("pd") is None, reason="needs Pure Data")
def test_the_patch_of_pure_data_sends_what_is_clicked(tmp_path: Path) -> None:
    clicks = [(30, 48), (30, 188), (30, 438), (330, 438)]  # connect, a label, notes, chords
    lines = [
        "#N canvas 0 0 400 300 12;",
        "#X obj 10 10 loadbang;",
        f"#X obj 10 40 t{' b' * len(clicks)};",
        "#X connect 0 0 1 0;",
    ]
    for i, (x, y) in enumerate(clicks):
        action = f"\\; pd-live.pd mouse {x} {y} 1 0 \\; pd-live.pd mouseup {x} {y} 1 0"
        lines += [f"#X msg 10 {80 + 30 * i} {action};", f"#X connect 1 {len(clicks) - 1 - i} {i + 2} 0;"]
    (tmp_path / "clicks.pd").write_text("\n".join(lines))
    found: list[tuple[str, Any]] = []
    dispatcher = Dispatcher()
    dispatcher.set_default_handler(lambda address, *values: found.append((address, values)))
    with BlockingOSCUDPServer(("127.0.0.1", 9000), dispatcher) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        command = [
            "pd",
            "-nogui",
            "-noaudio",
            "-nomidi",
            "-open",
            ROOT / "examples" / "live.pd",
            "-open",
            tmp_path / "clicks.pd",
        ]
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
            wait(lambda: len(found) >= 3)
            process.kill()
        server.shutdown()
    assert found == [
        ("/audiovq/label/timbre", ("piano",)), ("/audiovq/notes", (60, 64, 67)), ("/audiovq/chords", ("Am", "F", "C", "G"))
    ]  # fmt: skip


# --- OSC and MIDI -----------------------------------------------------------------------------------------------------


def test_osc_messages_steer_the_music(live: Live) -> None:
    stopped, lines = threading.Event(), []
    with osc_server(Controls(live, stopped.set, lines.append), 0) as port:
        client = SimpleUDPClient("127.0.0.1", port)
        client.send_message("/audiovq/temperature", 1.25)
        client.send_message("/audiovq/top_p", [1.0, 0.9, 0.8])
        client.send_message("/audiovq/guidance", 2)
        client.send_message("/audiovq/label/genre", "folk")
        client.send_message("/audiovq/seed", 9.0)
        client.send_message("/audiovq/top_k", 4.0)
        wait(lambda: live.controls["top_k"])
        found = live.controls
        assert found["temperature"] == 1.25
        assert [round(value, 5) for value in found["top_p"]] == [1, 0.9, 0.8]
        assert (found["guidance"], found["labels"], found["seed"], found["top_k"]) == (2, {"genre": "folk"}, 9, 4)
        assert not lines
        for address, values, words in (
            ("/audiovq/label/genre", "jazz", "label genre=jazz: expected one of: folk, rock"),
            ("/audiovq/tempo", 120, "tempo: no such control; expected one of: temperature"),
            ("/audiovq/temperature", -1.0, "temperature"), ("/audiovq/temperature", "hot", "temperature"),
            ("/audiovq/labels", "folk", "labels: expected names"), ("/audiovq/seed", "x", "not changed"),
            ("/audiovq/seed", float("inf"), "seed: expected a whole number"), ("/audiovq/top_k", 0.9, "whole number"),
            ("/audiovq/notes", float("-inf"), "not changed"), ("/audiovq/label/genre", ["folk", 0.3, "rock"], "with its share"),
            ("/audiovq/label/genre", "jäzz".encode("latin-1"), "label genre"),
            ("/audiovq/chords", ["C", "H"], "chords: "), ("/other/temperature", 1.0, "expected /audiovq/"),
        ):  # fmt: skip
            client.send_message(address, values)
            wait(lambda: lines)
            line = lines.pop()
            assert words in line
            assert line.startswith("not changed: ")
            assert "\n" not in line
        assert live.controls == found
        client.send_message("/audiovq/label/genre", ["folk", 0.25, "rock", 0.75])
        wait(lambda: live.controls["labels"] != {"genre": "folk"})
        assert live.controls["labels"] == {"genre": {"folk": 0.25, "rock": 0.75}}
        client.send_message("/audiovq/label/genre", [])
        client.send_message("/audiovq/temperature", [])
        wait(lambda: live.controls["temperature"] is None)
        assert live.controls["labels"] == {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.sendto(b"not OSC at all", ("127.0.0.1", port))
        client.send_message("/audiovq/restart", [])
        client.send_message("/audiovq/stop", [])
        wait(stopped.is_set)
        assert live.restarts
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        taken = osc_server(Controls(live, stopped.set), other.getsockname()[1])
        with pytest.raises(ValueError, match="choose another --osc"):
            taken.__enter__()


def test_osc_bundles_for_later_act_at_once_and_broken_packets_are_one_line(live: Live) -> None:
    lines: list[str] = []
    with osc_server(Controls(live, lambda: None, lines.append), 0) as port:
        client = SimpleUDPClient("127.0.0.1", port)
        bundle = OscBundleBuilder(int(time.time()) + 3600)
        for name, value in (("temperature", 0.7), ("top_k", 3)):
            message = OscMessageBuilder(f"/audiovq/{name}")
            message.add_arg(value)
            bundle.add_content(message.build())
        client.send(bundle.build())
        wait(lambda: live.controls["top_k"] == 3, 5)
        assert live.controls["temperature"] == pytest.approx(0.7)
        for packet in (b"/audiovq/text\0\0\0,s\0\0\xe9t\xe9\0", b"/audiovq/t\0\0,z\0\0", b"#bundle\0\1"):
            lines.clear()
            client._sock.sendto(packet, ("127.0.0.1", port))
            wait(lambda: lines, 5)
            assert lines[0].startswith("not changed: "), lines


def test_midi_events_steer_the_music(live: Live) -> None:
    lines: list[str] = []
    controls = Controls(live, lambda: None, lines.append)
    for data in ([0xB0, 1, 127], [0xB3, 2, 64], [0xB0, 74, 0], [0xB0, 99, 5], [0x90, 49, 100], [0x80, 48, 0]):
        controls.midi(mido.Message.from_bytes(data))
    found = live.controls
    assert (found["temperature"], found["top_p"], found["labels"]) == (2.0, 0.05, {"genre": "rock"})
    assert found["guidance"] == pytest.approx(4 * 64 / 127)
    for data in ([0x90, 48, 100], [0x90, 49, 0], [0x90, 38, 1], [0x90, 36, 1], [0x90, 50, 1], [0xE0, 0, 64], [0xF8]):
        controls.midi(mido.Message.from_bytes(data))
    assert live.controls["labels"] == {"genre": "folk"}
    assert live.seed == 6
    assert live.restarts
    assert not lines


def test_a_midi_port_that_is_not_there_is_one_line(live: Live) -> None:
    with pytest.raises(ValueError, match="midi: ") as error:
        midi_input(Controls(live, lambda: None), "no such controller").__enter__()
    assert "\n" not in str(error.value)


def test_a_virtual_midi_port(live: Live) -> None:
    try:
        output = mido.open_output("audiovq test", virtual=True)  # type: ignore[attr-defined]
    except (OSError, SystemError, ImportError):
        pytest.skip("no MIDI ports here")
    with output, midi_input(Controls(live, lambda: None), "audiovq test"):
        output.send(mido.Message("control_change", control=1, value=127))
        wait(lambda: live.controls["temperature"] == 2.0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_file_and_a_pipe_have_the_same_music(tiny_run: Path, tmp_path: Path) -> None:
    options = ("--seed", "3", "--seconds", "1.5", "--label", "genre=folk", "--precision", "fp32")
    result = cli("live", tiny_run, *options, "--out", tmp_path / "x.wav", "--save-codes", tmp_path / "x.codes")
    assert result.exit_code == 0, result.output
    sound, rate = soundfile.read(tmp_path / "x.wav", dtype="int16")
    assert (len(sound), rate) == (12000, 8000)
    generator = Generator.from_pretrained(tiny_run, "cpu")
    music = generator.live(3, genre="folk", precision="fp32")
    expected = music.read(1.5)
    assert np.array_equal(sound, (expected[0] * 32768).round().clamp(max=32767).short().numpy())
    codes = Codes.load(tmp_path / "x.codes")
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, music.codes().levels, strict=True))
    command = [sys.executable, "-m", "audiovq", "live", tiny_run, *options, "--out", "-"]
    piped = subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout
    wave = np.frombuffer(piped[44:], "<i2")
    assert np.array_equal(wave, sound)


@pytest.mark.parametrize("interrupted", [True, False])
def test_codes_are_kept_when_the_program_behind_a_pipe_ends(tiny_run: Path, tmp_path: Path, interrupted: bool) -> None:
    """Ctrl-C reaches both programs of a pipe; a player that is closed alone is an error, after the codes are saved."""
    codes = tmp_path / "x.codes"
    command = [sys.executable, "-m", "audiovq", "live", tiny_run, "--out", "-", "--save-codes", codes]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(44 + 32000)) == 44 + 32000
        if interrupted:
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        messages = process.stderr.read()
    assert process.returncode == (0 if interrupted else 2), messages
    assert (b"the program that reads it has stopped" in messages) is not interrupted
    assert b"Traceback" not in messages
    assert Codes.load(codes).seconds >= 2


def test_endless_sound_in_a_pipe_is_steered_and_stopped_over_osc(tiny_run: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "audiovq", "live", tiny_run, "--out", "-", "--osc", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(44 + 32000)) == 44 + 32000
        client = SimpleUDPClient("127.0.0.1", port)
        client.send_message("/audiovq/label/genre", "jazz")
        client.send_message("/audiovq/temperature", 0.5)
        client.send_message("/audiovq/stop", [])
        rest, messages = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(rest) % 1600 == 0
    assert b"not changed: label genre=jazz: expected one of: folk, rock" in messages
    assert b"Traceback" not in messages


def test_playing_to_nowhere(tiny_run: Path) -> None:
    result = cli("live", tiny_run, "--device", "null", "--seconds", 0.3, "--buffer", 0.1)
    assert result.exit_code == 0, result.output
    assert "a change is heard after" in result.output
    assert "s played, " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--raw",), ["use --out -"]),
        (("--out", "x.wav"), ["add --seconds"]),
        (("--out", "x.aac", "--seconds", 1), ["ends in .wav, .flac"]),
        (("--device", "null", "--label", "genre=jazz"), ["expected one of: folk, rock"]),
        (("--device", "null", "--temperature", -1), ["temperature"]),
        (("--device", "null", "--midi", "no such port", "--seconds", 0.1), ["midi: "]),
        (("--device", "no such card at all", "--seconds", 0.1), []),
    ],
)
def test_bad_input_is_one_line(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(cli("live", tiny_run, *arguments), *words)
    assert not list(tmp_path.glob("x.*"))


def test_a_missing_package_is_one_line(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_one_line_error(cli("live", tiny_run, "--osc", 9000), "sounddevice is missing", "audiovq[live]")
