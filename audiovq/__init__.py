"""Learns to make music from a folder of music: waveform ↔ codes (VQ-VAE), codes → codes (transformers).

>>> from audiovq import Tokenizer, Generator
"""

from typing import TYPE_CHECKING, Any

from audiovq.utils import environment

if TYPE_CHECKING:
    from audiovq.api import CodeDataset, Generator, Tokenizer
    from audiovq.data.codes import Codes

__version__ = "0.2.0"
__all__ = ["CodeDataset", "Codes", "Generator", "Tokenizer"]
_HOME = {name: "audiovq.data.codes" if name == "Codes" else "audiovq.api" for name in __all__}

environment.prepare()  # before any library is imported that needs it


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is used."""
    if name not in _HOME:
        raise AttributeError(f"module 'audiovq' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
