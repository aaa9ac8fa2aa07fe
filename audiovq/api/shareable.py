"""What `Tokenizer` and `Generator` have in common: they can be written to a folder and sent to the hub."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiovq.pretrained.export import save_pretrained
from audiovq.pretrained.locate import push_folder
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.vqvae import VQVAE

Models = tuple[VQVAE, Sequence[Prior], Sequence[SamplingConfig]]


class Shareable:
    """Adds `save_pretrained` and `push_to_hub` to a class that defines `_models`."""

    def _models(self) -> Models:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write a folder to share: weights, configs and a model card (that of `audiovq export` has more). Half
        precision makes it another tokenizer with codes of its own. ValueError if the folder is not empty."""
        save_pretrained(folder, *self._models(), half=half)

    def push_to_hub(self, repo_id: str, *, half: bool = False, **options: Any) -> list[str]:
        """Send the model to the Hugging Face hub; gives one line per file, and one with the address. For `half`
        see `save_pretrained`, for the options (private, revision, token, dry_run) see `push_folder`."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            save_pretrained(folder, *self._models(), half=half, repo_id=repo_id)
            return push_folder(folder, repo_id, **options)
