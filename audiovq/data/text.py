"""Captions and lyrics as a prior reads them."""

import numpy as np
import torch
from torch import Tensor


def track_text(labels: dict[str, str]) -> str:
    """Caption or lyrics of a track: the label `text`, which `<name>.txt` gives, or `caption`."""
    return labels.get("text") or labels.get("caption", "")


def text_bytes(text: str, n: int) -> Tensor:
    """The first `n` UTF-8 bytes of a text, each plus 1, padded with 0: int64 [n]."""
    found = np.frombuffer(text.encode()[:n], dtype=np.uint8).astype(np.int64) + 1
    return torch.from_numpy(np.pad(found, (0, n - len(found))))
