"""Recipes: strictness, helpful errors, inheritance, overrides."""

import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, cli

from audiovq import config as conf
from audiovq.recipe import (
    Recipe,
    TrainingConfig,
    first_difference,
    header,
    load_recipe,
    load_saved_recipe,
    read_mapping,
)  # fmt: skip

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(("override", "message"), [
    ("tokenizer.model.quantizer.codebok_size=512", "tokenizer.model.quantizer.codebok_size: unknown key, did you mean 'codebook_size'?"),
    ("tokenizer.trainng.steps=1", "tokenizer.trainng: unknown key, did you mean 'training'?"),
    ("tokenizer.training.steps=many", "tokenizer.training.steps: expected a valid integer, found 'many'"),
    ("tokenizer.training.steps=0", "tokenizer.training.steps: expected greater than or equal to 1, found 0"),
    ("tokenizer.model.topology=flat", "tokenizer.model.topology: expected 'residual', 'independent' or 'bands', found 'flat'"),
    ("tokenizer.model.hop_lengths=[512, 500]", "each divisible by the next, found [512, 500]"),
    ("tokenizer.model.hop_lengths=[64, 32, 64]", "expected a list that never rises, each divisible by the next, found [64, 32, 64]"),
    ("tokenizer.model.hop_lengths=[64, 64, 64, 64, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32]", "expected 1 to 16 hop_lengths, found 17"),
    ("tokenizer.model.quantizer={kind: gumbel, temperature_steps: 4}", "expected at most training.steps - vq_start_step = 3"),
    ("tokenizer.model.quantizer={kind: fsq, levels: [9, 1]}", "numbers of at least 2 with a product of at most 65536, found [9, 1]"),
    ("tokenizer.model.quantizer={kind: vq}", "tokenizer.model.quantizer"),
    ("priors.0.model.transformer.n_heads=7", "expected an even multiple of n_heads 7"),
    ("priors.0.model.conditioners=[{kind: colour}]", "priors.0.model.conditioners.0"),
    ("tokenizer.vq_start_step=4", "expected less than tokenizer.training.steps 4, found 4"),
    ("tokenizer.sound_start_step=4", "expected less than tokenizer.training.steps 4, found 4"),
    ("tokenizer.sound_start_step=2", "expected a decoder of kind tones"),
    ("tokenizer.losses.waveform_warmup_steps=2", "expected less than half of tokenizer.training.steps 4"),
    ("nonsense", "expected key=value"),
])  # fmt: skip
def test_wrong_values_are_named_with_their_path(tiny_recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        load_recipe(str(tiny_recipe), overrides=(override,))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_floats_are_numbers_and_integers_stay_integers() -> None:
    parsed = conf.parse_yaml("{a: 1e-3, b: 3, c: 2., d: 1E5, e: -4, f: 1.5}", "text")
    assert parsed == {"a": 0.001, "b": 3, "c": 2.0, "d": 1e5, "e": -4, "f": 1.5}
    assert isinstance(parsed["b"], int)
    assert isinstance(parsed["a"], float)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("data:\n  folder: [1, 2\nx: 3\n")
    with pytest.raises(ValueError, match=r"bad\.yaml line 3: not valid YAML"):
        load_recipe(str(path))


def test_extends_merges_and_later_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\ntokenizer: {vq_start_step: 0, training: {steps: 7, batch_size: 3}}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntokenizer: {training: {steps: 9}}\ndata: {folder: tunes}\n")
    recipe = load_recipe(str(tmp_path / "b.yaml"), overrides=("tokenizer.training.batch_size=5",))
    assert (recipe.name, recipe.seed) == ("b", 1)
    assert (recipe.tokenizer.training.steps, recipe.tokenizer.training.batch_size) == (9, 5)
    assert recipe.data.folder == str(tmp_path / "tunes")  # relative to the recipe's file


def test_another_kind_replaces_instead_of_merging() -> None:
    base = {"decoder": {"kind": "istft", "overlap": 4}}
    assert conf.merge(base, {"decoder": {"kind": "conv"}}) == {"decoder": {"kind": "conv"}}
    assert conf.merge(base, {"decoder": {"dim": 8}}) == {"decoder": {"kind": "istft", "overlap": 4, "dim": 8}}


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ValueError, match="extends itself"):
        read_mapping(tmp_path / "a.yaml")


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_saved_recipe(tmp_path / "recipe.yaml") == recipe
    other = recipe.model_copy(update={"seed": 5})
    assert first_difference(recipe.model_dump(), other.model_dump()) == "seed: 0 → 5"
    assert first_difference(recipe.model_dump(), recipe.model_dump()) is None
    for old, new, words in (
        (None, 0.9, "x: null → 0.9"),
        (True, "a b", 'x: true → "a b"'),
        ({"kind": "mel"}, None, 'x: {"kind": "mel"} → null'),
    ):
        assert first_difference({"x": old}, {"x": new}) == words
        assert yaml.safe_load(words.split(" → ")[0])["x"] == old  # it is given again with --set


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_has_a_complete_header(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert isinstance(recipe, Recipe)
    facts = header(path)
    for key in ("purpose", "hardware", "time", "reached"):
        assert facts.get(key), f"{path.name}: no `# {key.capitalize()}:` in its header"


def test_recipes_command_lists_all_with_purpose() -> None:
    result = cli("recipes")
    assert result.exit_code == 0
    for path in RECIPES:
        line = next(line for line in result.output.splitlines() if line.startswith(path.stem))
        assert header(path)["purpose"] in line


@pytest.mark.parametrize(("text", "words"), [
    ("x: &a [*a]", "levels deep"),
    ("a: " + "[" * 5000, "nested too deeply"),
    ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)), "more than 20000 values"),
    ("x: \x07", "special characters are not allowed"),
    ("x: !!timestamp zz", "unknown type"),
    ("x: !!bool zz", "not valid YAML"),
    ("x: !!python/object:os.system x", "unknown type"),
    ("seed: 1\nseed: 2", "line 1: not valid YAML (the key seed is there twice)"),
    ("tokenizer: {training: {steps: 3, steps: 4}}", "the key steps is there twice"),
    ("tokenizer: {training: {steps: 1:30}}", "expected a valid integer, found '1:30'"),
    ("tokenizer: {training: {learning_rate: .inf}}", "learning_rate: expected at most 9223372036854775807, found inf"),
    ("tokenizer: {training: {learning_rate: 1e400}}", "learning_rate: expected at most"),
    ("tokenizer: {crop_seconds: 1e9}", "crop_seconds: expected at most 86400, found 1000000000.0"),
    ("tokenizer: {crop_seconds: .nan}", "crop_seconds: expected at most 9223372036854775807, found nan"),
    ("tokenizer: {model: {dim: 100000000}}", "tokenizer.model.dim: expected at most 65536, found 100000000"),
    ("priors: [{model: {transformer: {n_layers: 100000000}}}]", "n_layers: expected at most 1024"),
    ("seed: " + "9" * 400, "seed: expected at most"),
    ("seed: " + "9" * 5000, "not valid YAML"),
    ("name: ../../elsewhere", "name: expected a name for a folder"),
    ("x: '" + "a" * 2**20 + "'", "expected a recipe of at most 1048576 bytes"),
])  # fmt: skip
def test_recipes_that_mean_harm_are_one_line_at_once(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        load_recipe(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert time.monotonic() - began < 5


def test_yaml_means_what_it_looks_like() -> None:
    text = "{a: 010, b: 1:30, c: 1_000, d: 0x10, e: 2001-01-01, f: 0o10, g: -3, h: .5, i: '1e5', k: 1.5e-3}"
    expected = {"a": 10, "b": "1:30", "c": 1000, "d": 16, "e": "2001-01-01", "f": "0o10", "g": -3, "h": 0.5}
    assert conf.parse_yaml(text, "text") == {**expected, "i": "1e5", "k": 0.0015}
    merged = conf.parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {<<: *a}", "text")
    assert merged == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 1}}


def test_a_saved_recipe_keeps_texts_that_look_like_numbers(tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=("name='1e5'",))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_saved_recipe(tmp_path / "recipe.yaml") == recipe
    texts = dict(
        enumerate(["1e5", "010", "1:30", "1_0", "0x1", "0o7", "2001-01-01", "yes", "~", "", ".5", "=", "a\nb"])
    )
    assert conf.parse_yaml(conf.to_yaml({"x": texts}), "text") == {"x": texts}


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "mine.yaml"
    path.write_text("data: {folder: ~/Music}\ncodes: {path: ~/codes}")
    recipe = load_recipe(str(path))
    assert (recipe.data.folder, recipe.codes.path) == (str(tmp_path / "Music"), str(tmp_path / "codes"))
    assert load_recipe(str(path), overrides=("data.folder=~/x",)).data.folder == str(tmp_path / "x")
    assert load_recipe(str(path), data="~/x").data.folder == str(tmp_path / "x")
