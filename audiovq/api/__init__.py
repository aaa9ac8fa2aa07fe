"""What users import: `Tokenizer` (audio ↔ codes), `Generator` (nothing, or a prompt → music) and `Live`."""

from audiovq.api.code_dataset import CodeDataset
from audiovq.api.generator import Generator
from audiovq.api.live import Live
from audiovq.api.options import PieceOptions
from audiovq.api.tokenizer import Tokenizer
from audiovq.pretrained.export import save_pretrained
from audiovq.pretrained.locate import bundled_model, default_model, prior_folders, push_folder, resolve_model
from audiovq.utils.device import pick_device

__all__ = ["CodeDataset", "Generator", "Live", "PieceOptions", "Tokenizer", "pick_device", "save_pretrained"]
__all__ += ["bundled_model", "default_model", "prior_folders", "push_folder", "resolve_model"]
