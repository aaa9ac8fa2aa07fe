"""docs/generate.py generates the tables of keys, commands, recipes and samples, and formulae, when the site is built."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import click
import pytest
from conftest import ROOT

from audiovq.cli import main
from audiovq.recipe import Recipe

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_key_has_type_default_and_meaning(generate: ModuleType) -> None:
    used = set()
    for path, config in generate.sections():
        owner = config.__qualname__.split(".")[0]
        for name, field in config.model_fields.items():
            try:
                generate.meaning(config, name)
            except KeyError:
                pytest.fail(f"{path}.{name}: add a comment with its meaning to the field of {config.__qualname__}")
            assert generate.kind_of(field.annotation, field)
            if generate.comments(config).get(name) is None:
                used |= {f"{owner}.{name}"} if f"{owner}.{name}" in generate.MEANINGS else {name}
    assert set(generate.MEANINGS) <= used, f"docs/meanings.yaml: unused {set(generate.MEANINGS) - used}"


def test_tables_have_type_default_and_meaning(generate: ModuleType) -> None:
    page = generate.recipe_keys()
    assert "## `tokenizer.training`\n" in page
    assert "## `priors[].training`\n" in page
    assert "| `learning_rate` | float > 0 | `0.001` | highest learning rate, at the end of the warm-up;" in page
    assert "| `attention_window` | int ≥ 1, ≤ 65536 or null | `null` | codes to attend" in page
    assert "| `hop_lengths` | list of int | `[1024, 512, 256]` |" in page
    assert "## `tokenizer.model.quantizer`: `gumbel`" in page
    assert "| `precision` | `auto` or `fp32` or `bf16` | `auto` |" in page
    keys = {name for _, config in generate.sections() for name in config.model_fields}
    assert all(f"| `{key}` |" in page for key in keys)
    assert set(Recipe.model_fields) <= keys


def test_every_command_and_option_is_on_its_page(generate: ModuleType) -> None:
    page = generate.command_pages()
    for name, command in main.commands.items():
        section = page.split(f"## audiovq {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in section
    assert "| `--index INTEGER RANGE` | Index of the first piece:" in page


def test_tables_of_recipes_and_samples_are_those_of_the_files(generate: ModuleType) -> None:
    table = generate.recipe_table()
    for path in generate.recipe_files():
        assert f"| [`{path.stem}`](#{path.stem}) |" in table
    assert "| `scratch` | 16000 | 512, 512, 512 (bands) | 31.25 + 31.25 + 31.25 = 93.75 | 256 | 562 |" in table
    assert "| `quickstart` | those of `default` | | | | |" in table
    samples = generate.sample_table()
    assert samples.count(".opus`") == len(list((ROOT / "samples").rglob("*.opus")))
    credits = (ROOT / "samples" / "CREDITS.md").read_text()
    for name in re.findall(r"/([\w-]+\.opus)`", samples):
        assert name in credits, f"{name} has no line in CREDITS.md"


def test_formulae_become_mathml(generate: ModuleType) -> None:
    pytest.importorskip("latex2mathml")
    found = generate.formulae_to_mathml(r'<span class="arithmatex">\(\log p(x) &lt; 1\)</span>')
    assert found.startswith("<math")
    assert "&lt;" in found or "&#x0003C;" in found
    with pytest.raises(ValueError, match="does not know"):
        generate.formulae_to_mathml(r'<div class="arithmatex">\[\nonsense x\]</div>')
