"""The model card: README.md of a shared model, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from audiovq.prior.prior import PriorSpec
from audiovq.tokenizer.vqvae import VQVAEConfig

LONGEST_CREDITS = 20000  # characters
MOST_VALUES = 20  # of a label that are listed


@dataclass
class CardFacts:
    """What a card says; what is not known is left out of it."""

    name: str
    config: VQVAEConfig
    tokenizer_hash: str
    specs: list[PriorSpec]  # of the priors, coarse to fine
    n_parameters: int
    half: bool = False
    onnx: dict[str, float] | None = None  # what its check found
    license: str | None = None  # the hub's name of it, such as cc-by-4.0
    data: dict[str, Any] = field(default_factory=dict)  # hours, tracks, train_tracks, valid_tracks
    labels_said: dict[str, list[str]] = field(default_factory=dict)  # licences and artists that the tracks' labels name
    credits: str = ""
    recipe: str = ""  # YAML
    recipe_facts: dict[str, Any] = field(default_factory=dict)  # a few that people look for
    split: str = ""  # the tracks that were measured on
    levels: list[dict[str, Any]] = field(default_factory=list)  # of report.json


def model_card(facts: CardFacts, repo_id: str = "OWNER/NAME") -> str:
    """The whole README.md.

    Args:
        repo_id: what the examples load.
    """
    kind = "text-to-audio" if facts.specs else "audio-to-audio"
    tags = ["audiovq", "music", "audio", "vq-vae", "audio-tokenizer", *(["music-generation"] if facts.specs else [])]
    head = ModelCardData(license=facts.license, library_name="audiovq", pipeline_tag=kind, tags=tags)
    parts = [
        f"---\n{head.to_yaml()}\n---", f"# {facts.name}", _what(facts), _use(facts, repo_id), _data(facts), _recipe(facts),
        _measured(facts), _not_for(facts),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(facts: CardFacts) -> str:
    c = facts.config
    rates = ", ".join(f"{rate:.4g}" for rate in c.code_rates)
    lines = [
        f"A model of [audiovq](https://pypi.org/project/audiovq/): a multi-resolution VQ-VAE turns {_mono(c)} music at "
        f"{c.sample_rate} Hz into codes ({rates} a second, coarse to fine, of {c.codebook_size})"
        + ("; transformers generate new codes, which become new music." if facts.specs else ", and codes into music."),
        f"{facts.n_parameters / 1e6:.1f} million parameters, {'half' if facts.half else 'single'} precision. Weights and JSON "
        "only: nothing in this folder can be executed.",
        f"Identity of the codes (`tokenizer_hash`): `{facts.tokenizer_hash}`."
        + (" Rounding to half precision made it another one than its run's." if facts.half else ""),
    ]
    if facts.specs and facts.specs[0].vocabularies:
        lines.append("It can be told:")
        for name, values in facts.specs[0].vocabularies.items():
            more = f", … ({len(values)} in all)" if len(values) > MOST_VALUES else ""
            lines.append(f"- `{name}`: {', '.join(_plain(v) for v in values[:MOST_VALUES]) or 'nothing'}{more}")
    return "\n".join(lines)


def _mono(c: VQVAEConfig) -> str:
    return "mono" if c.channels == 1 else "stereo"


def _plain(text: str) -> str:
    """One line without anything that Markdown or HTML would read."""
    return " ".join("".join(c for c in text if c not in "<>`|[]*_#").split())


def _use(facts: CardFacts, repo_id: str) -> str:
    generate = (
        f"""
music = Generator.from_pretrained("{repo_id}").sample(seconds=20, seed=0)  # float [1, channels, samples]"""
        if facts.specs
        else ""
    )
    text = f"""## How to use

```python
from audiovq import Generator, Tokenizer  # pip install audiovq

tokenizer = Tokenizer.from_pretrained("{repo_id}")  # or the path of this folder
codes = tokenizer.encode(waveform, sample_rate=44100)
waveform = tokenizer.decode(codes){generate}
```"""  # fmt: skip
    if facts.specs:
        text += f"\n\n    audiovq sample --model {repo_id} --seconds 20"
    if facts.onnx:
        text += (
            "\n\n`onnx/encode.onnx` and `onnx/decode.onnx` are the tokenizer for ONNX runtimes, with all rules in their metadata. "
            f"Beside torch, on a test signal: {facts.onnx['codes_equal']:.2%} of the codes equal, samples within "
            f"{facts.onnx['waveform_error']:.1g}."
        )
    return text


def _data(facts: CardFacts) -> str:
    lines = ["## Training data", ""]
    if facts.data:
        d = facts.data
        lines.append(
            f"{d['hours'] * 60:.1f} minutes ({d['hours']:.2f} hours) of music: {d['train_tracks']} tracks to learn from, "
            f"{d['valid_tracks']} held out."
        )
    else:
        lines.append("Nothing is known of it here.")
    for name, values in facts.labels_said.items():
        more = f", … ({len(values)} in all)" if len(values) > MOST_VALUES else ""
        lines.append(f"- {name}, by the tracks' labels: {', '.join(_plain(v) for v in values[:MOST_VALUES])}{more}")
    if facts.credits:
        cut = facts.credits[:LONGEST_CREDITS].strip()
        quoted = "\n".join(f"> {line}".rstrip() for line in cut.splitlines())
        lines += ["", "Credits and licences, as they lay beside the music:", "", quoted]
    elif "licence" not in facts.labels_said:
        lines.append("No licence or credits lay beside the music: ask who trained it before you share what it makes.")
    return "\n".join(lines)


def _recipe(facts: CardFacts) -> str:
    if not facts.recipe:
        return ""
    said = "\n".join(f"- {name}: {value}" for name, value in facts.recipe_facts.items())
    return f"## Recipe\n\n{said}\n\n<details><summary>all of it</summary>\n\n```yaml\n{facts.recipe.strip()}\n```\n\n</details>"


def _measured(facts: CardFacts) -> str:
    if not facts.levels:
        return ""
    rows = [
        "| level | bits a code | unigram | bigram | bits a second | share of codes used |",
        "|---|---|---|---|---|---|",
    ]
    for i, level in enumerate(facts.levels):
        names = ("bits_per_code", "unigram_bits_per_code", "bigram_bits_per_code", "bits_per_second", "usage")
        cells = [level.get(name) for name in names]
        rows.append(f"| {i} | " + " | ".join("" if cell is None else f"{cell:.3g}" for cell in cells) + " |")
    what = "held-out tracks" if facts.split == "valid" else "the training tracks themselves (none were held out)"
    return (
        f"## Measured\n\nOn {what}; unigram is what a code costs that is guessed by its frequency alone, bigram one that is "
        "guessed by the code before.\n\n" + "\n".join(rows)
    )


def _not_for(facts: CardFacts) -> str:
    c = facts.config
    lines = [
        "## What it is not good for",
        "",
        f"- Nothing above {c.sample_rate // 2} Hz passes through it"
        + (", and stereo becomes mono." if c.channels == 1 else "."),
        "- It knows the kind of music it was trained on; other music, speech and noise come out of the tokenizer worse.",
        "- The codes are made to be generated, not to store audio: waveforms are not kept sample by sample.",
    ]
    if facts.specs:
        lines += [
            "- It has no notion of a song's form beyond the window its transformers see, and understands no words.",
            "- A model of little music learns some of it by heart: `audiovq copies piece.wav RUN` finds what a piece quotes.",
        ]
    return "\n".join(lines)
