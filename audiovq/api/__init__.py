"""What users import: `Tokenizer` (audio ↔ codes) and `Generator` (nothing, or a prompt → music)."""

from audiovq.api.generator import Generator
from audiovq.api.locate import bundled_model, default_model, pick_device, prior_folders, resolve_model
from audiovq.api.tokenizer import Tokenizer

__all__ = ["Generator", "Tokenizer", "bundled_model", "default_model", "pick_device", "prior_folders", "resolve_model"]
