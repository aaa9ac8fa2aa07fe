"""What a sound file says about the model that made it."""

import contextlib
from pathlib import Path

import huggingface_hub
from yaml import YAMLError


def model_licence(folder: Path) -> str | None:
    """The licence in the card of a model; None if there is none."""
    card = None
    with contextlib.suppress(OSError, ValueError, YAMLError):
        card = huggingface_hub.metadata_load(folder / "README.md")
    return card.get("license_name") or card.get("license") if card else None


def piece_tags(title: str, model: str, seed: int | None, labels: dict[str, str], licence: str | None) -> dict[str, str]:
    """The tags of a generated piece; its comment has all that makes it again."""
    facts = [model, *([] if seed is None else [f"seed {seed}"]), *(f"{name} {value}" for name, value in labels.items())]
    comment = ", ".join(facts) + (f"; licence of the model: {licence}" if licence else "")
    return {"title": title, "comment": comment, "software": "audiovq", "license": licence or ""}
