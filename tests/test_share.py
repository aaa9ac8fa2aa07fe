"""Models travel: exported folders, model cards, the hub and its cache."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import ROOT, assert_one_line_error, cli
from hub_server import TOKEN, Hub, serve

from audiovq import Generator, Tokenizer
from audiovq.pretrained import checkpoint
from audiovq.pretrained.export import find_credits, without_local_paths
from audiovq.pretrained.locate import MODEL_FILES, model_licence, resolve_model
from audiovq.recipe import load_recipe, load_saved_recipe
from audiovq.utils.files import SUMS


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "small-model"
    credits_file = folder.parent / "who.txt"
    credits_file.write_text("Tunes by a synthesizer.\n# not a heading of the card\n")
    result = cli("export", tiny_run, folder, "--license", "cc-by-4.0", "--credits", credits_file, "--name", "me/small")
    assert result.exit_code == 0, result.output
    return folder


def front_matter(card: str) -> dict[str, object]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_an_exported_folder_is_the_same_model(exported: Path, tiny_run: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    parts = ("tokenizer", "prior-0", "prior-1", "prior-2")
    assert names == {"README.md"} | {
        f"{p}/{n}" for p in parts for n in ("config.json", "model.safetensors", "sha256.json")
    }
    before, after = Generator.from_pretrained(tiny_run), Generator.from_pretrained(exported)
    assert after.tokenizer.hash == before.tokenizer.hash
    assert torch.equal(after.sample(1, seed=3), before.sample(1, seed=3))


def test_the_card_says_data_credits_recipe_figures_and_use(exported: Path, tiny_run: Path, music: Path) -> None:
    card = (exported / "README.md").read_text()
    head = front_matter(card)
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "audiovq"
    assert head["pipeline_tag"] == "text-to-audio"
    assert {"music", "music-generation", "vq-vae"} <= set(head["tags"])  # type: ignore[arg-type]
    report = json.loads((tiny_run / "report.json").read_text())
    for text in (
        "0.2 minutes (0.00 hours) of music: 3 training tracks, 1 held out", "> Tunes by a synthesizer.",
        "> # not a heading", '`genre`: folk, rock', 'from_pretrained("me/small")', "## Limits",
        "audiovq sample --model me/small", Tokenizer.from_pretrained(exported).hash,
        f"| 0 | {report['levels'][0]['bits_per_code']:.3g} |",
    ):  # fmt: skip
        assert text in card, text
    assert str(music.parent) not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["data"]["folder"] == music.name
    huggingface_hub.ModelCard(card)  # reads it as the hub does


def test_local_paths_are_not_published(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "secret" / "run")
    places = (
        "data.manifest=/secret/list.jsonl", "data.credits=/secret/CREDITS.md", "codes.path=s3://secret/run/codes",
        f"tokenizer.from_pretrained={tmp_path / 'secret' / 'run'}", "priors.0.from_pretrained=owner/model@v1",
    )  # fmt: skip
    public = without_local_paths(load_recipe(str(tiny_recipe), overrides=places))
    assert "secret" not in public.to_yaml()
    assert "/" not in public.data.folder
    assert (public.codes.path, public.data.manifest, public.data.credits) == ("codes", "list.jsonl", "CREDITS.md")
    assert (public.tokenizer.from_pretrained, public.priors[0].from_pretrained) == ("run", "owner/model@v1")
    assert without_local_paths(public) == public


def test_the_card_of_the_bundled_model_can_be_written_again(tiny_run: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "benchmarks" / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    bundle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bundle)
    credits, text = tmp_path / "CARD.md", tmp_path / "LICENCES.md"
    credits.write_text("Tunes by a synthesizer.\n")
    text.write_text("The tokenizer learned from GPL-2 music.\n")
    target = tmp_path / "models" / "default"
    target.mkdir(parents=True)
    options = [str(tiny_run), str(target), "--credits", str(credits)]
    assert CliRunner().invoke(bundle.main, options).exit_code == 0
    card = (target / "README.md").read_text()
    assert (front_matter(card)["license"], front_matter(card)["license_name"]) == ("other", "see-model-card")
    assert "> Tunes by a synthesizer." in card
    licences = (ROOT / "recipes" / "default" / "LICENCES.md").read_text()
    bundled = (ROOT / "audiovq" / "models" / "default" / "README.md").read_text()
    assert licences in card
    assert licences in bundled
    assert front_matter(bundled)["license"] == "other"
    given = ["--license", "cc0-1.0", "--license-text", str(text)]
    assert CliRunner().invoke(bundle.main, [*options, *given]).exit_code == 0
    card = (target / "README.md").read_text()
    assert front_matter(card)["license"] == "cc0-1.0"
    assert "license_name" not in front_matter(card)
    assert "## Licence\n\nThe tokenizer learned from GPL-2 music.\n" in card


def test_half_precision_is_half_as_large_and_works(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    assert cli("export", tiny_run, tmp_path / "half", "--fp16").exit_code == 0
    sizes = [(folder / "prior-0" / "model.safetensors").stat().st_size for folder in (exported, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half, whole = Generator.from_pretrained(tmp_path / "half"), Generator.from_pretrained(exported)
    assert half.tokenizer.hash != whole.tokenizer.hash
    for a, b in zip(half.priors[0].parameters(), whole.priors[0].parameters(), strict=True):
        assert torch.equal(a, b.half().float())
    assert half.sample(0.5).shape == (1, 1, 4000)
    card = (tmp_path / "half" / "README.md").read_text()
    assert "half precision" in card
    assert "license" not in front_matter(card)


def test_a_model_that_is_exported_again_keeps_its_card(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    result = cli("export", exported, tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert "no credits" not in result.output
    first, again = ((folder / "README.md").read_text() for folder in (exported, tmp_path / "again"))
    assert front_matter(again) == front_matter(first)
    assert "without credits" not in again
    assert (
        "> > Tunes by a synthesizer.\n> > # not a heading of the card\n"
        in again.split("## The original model's card")[1]
    )
    assert cli("export", "default", tmp_path / "bundled", "--license", "mit").exit_code == 0
    bundled = (tmp_path / "bundled" / "README.md").read_text()
    assert front_matter(bundled)["license"] == "mit"
    assert "license_name" not in front_matter(bundled)
    assert "> | wide/0ad-data | CC-BY-SA-3.0 | the tokenizer |\n" in bundled
    (tmp_path / "again" / "README.md").write_text("---\nlicense: [\n---\nmine")
    assert_one_line_error(cli("export", tmp_path / "again", tmp_path / "x"), "README.md: expected a model card")
    (tmp_path / "again" / "README.md").write_text(40000 * "long " + "mine\n---\n")
    assert cli("export", tmp_path / "again", tmp_path / "x").exit_code == 0
    assert (tmp_path / "x" / "README.md").read_text().endswith(40000 * "long " + "mine\n> ---\n")
    shutil.copytree(tiny_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert recipe.count("from_pretrained: null") > 1
    (tmp_path / "run" / "recipe.yaml").write_text(
        recipe.replace("from_pretrained: null", "from_pretrained: default", 1)
    )
    assert cli("export", tmp_path / "run", tmp_path / "child").exit_code == 0
    assert "Its training began from default, whose card" in (tmp_path / "child" / "README.md").read_text()
    assert "began from" not in first


def test_credits_beside_the_music_are_found(tiny_run: Path, tmp_path: Path) -> None:
    recipe = load_saved_recipe(tiny_run / "recipe.yaml")
    music = tmp_path / "all" / "music"
    music.mkdir(parents=True)
    assert find_credits(music, recipe) == ""
    (music.parent / "LICENSE").write_text("of something else")
    assert find_credits(music, recipe) == ""
    (music.parent / "CREDITS.md").write_text("above")
    assert find_credits(music, recipe) == "above"
    (music / "LICENSE").write_text("in the folder")
    assert find_credits(music, recipe) == "in the folder"
    assert "Wen" in find_credits(ROOT / "samples" / "chorales", load_recipe("quickstart"))
    named = recipe.model_copy(update={"data": recipe.data.model_copy(update={"credits": "none.txt"})})
    with pytest.raises(ValueError, match=r"none\.txt: expected a text file with credits"):
        find_credits(music, named)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n\n# A: model\n", "mit"),
        ("---\nlicense: other\nlicense_name: see-model-card\n---\n", "see-model-card"),
        ("---\ntags: [music]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("# A model\n\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(text)
    assert model_licence(tmp_path) == licence
    (tmp_path / "README.md").unlink()
    assert model_licence(tmp_path) is None


def test_a_full_folder_and_no_model_are_one_line(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert_one_line_error(cli("export", tiny_run, tmp_path / "full"), "expected a new or empty folder")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert_one_line_error(cli("export", tmp_path / "full", tmp_path / "x"), "no tokenizer there")
    assert_one_line_error(cli("push", tmp_path / "full", "me/x"), "no model there to send")
    assert not (tmp_path / "x").exists()


def test_saved_from_python(exported: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(exported)
    generator.save_pretrained(tmp_path / "g")
    generator.tokenizer.save_pretrained(tmp_path / "t", half=True)
    assert Generator.from_pretrained(tmp_path / "g").tokenizer.hash == generator.tokenizer.hash
    assert not (tmp_path / "t" / "prior-0").exists()
    assert front_matter((tmp_path / "t" / "README.md").read_text())["pipeline_tag"] == "audio-to-audio"
    assert Tokenizer.from_pretrained(tmp_path / "t").sample_rate == 8000


def test_a_dry_run_lists_and_a_missing_network_is_one_line(
    exported: Path,
) -> None:
    (exported / "evil.pt").write_bytes(b"pickle")
    result = cli("push", exported, "me/small", "--dry-run")
    (exported / "evil.pt").unlink()
    assert result.exit_code == 0, result.output
    assert "prior-2/model.safetensors: " in result.output
    assert "would be sent to me/small" in result.output
    assert "evil" not in result.output
    for name in ("me/small", "not/a/name"):  # offline in all tests
        assert_one_line_error(cli("push", exported, name), f"{name}: cannot be sent to the hub")


@pytest.fixture
def hub() -> Iterator[str]:
    server = serve()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_up_to_a_hub_and_down_again_then_without_it(
    exported: Path, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real client, in a process of its own, because it reads its settings once; the hub is `hub_server`."""
    code = f"""
import sys
from audiovq import Generator, Tokenizer
from audiovq.api import push_folder
from pathlib import Path
try:
    push_folder(Path({str(exported)!r}), "me/small", token="wrong")
except ValueError as error:
    assert "cannot be sent to the hub" in str(error) and "\\n" not in str(error), error
print(push_folder(Path({str(exported)!r}), "me/small", token={TOKEN!r})[-1])
print(push_folder(Path({str(exported)!r}), "me/small", token={TOKEN!r}, revision="v1")[-1])
print(Tokenizer.from_pretrained("me/small", "cpu").hash)
print(Tokenizer.from_pretrained("me/small", "cpu", revision="v1", token={TOKEN!r}).hash)
print(Tokenizer.from_pretrained("me/small@v1", "cpu").hash)
try:
    Tokenizer.from_pretrained("me/small@v2", "cpu")
except ValueError as error:
    assert "cannot be downloaded from the hub" in str(error), error
"""
    environment = {
        **os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    identity = Tokenizer.from_pretrained(exported).hash
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1] == f"sent to {hub}/me/small"
    assert lines[2:] == [identity] * 3
    sent = Hub.repos["me/small"]["main"]
    assert {name: content for name, content in sent.items() if name != ".gitattributes"} == {
        path.relative_to(exported).as_posix(): path.read_bytes() for path in exported.rglob("*") if path.is_file()
    }
    Hub.repos["me/small"]["main"]["pytorch_model.bin"] = b"harm"
    # Here and now there is no network (HF_HUB_OFFLINE, tests/conftest.py): the cache has it.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = resolve_model("me/small")
    assert not list(folder.rglob("*.bin"))
    assert Generator.from_pretrained("me/small", "cpu").tokenizer.hash == identity
    assert cli("sample", "--model", "me/small@v1", "--seconds", "0.2", "--out", tmp_path / "a.wav").exit_code == 0


def test_only_weights_and_json_are_ever_fetched() -> None:
    assert {pattern.rsplit("/", 1)[-1] for pattern in MODEL_FILES} == {
        checkpoint.CONFIG,
        checkpoint.WEIGHTS,
        SUMS,
    }
