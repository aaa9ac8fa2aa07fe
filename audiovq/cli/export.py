"""`audiovq export`: a model folder to share."""

from pathlib import Path
from typing import Any

from click import argument, command, echo, option

CREDITS_HELP = "Credits for the model card; default the file CREDITS in the folder of music."


@command()
@argument("run")
@argument("folder", metavar="DIR")
@option("--fp16", "half", is_flag=True, help="Half-precision weights: half the size, but different codes.")
@option("--onnx", is_flag=True, help="Also the tokenizer as ONNX files; needs the extra audiovq[onnx].")
@option("--license", metavar="ID", help="License of the weights, as the hub names it: mit, cc-by-4.0, …")
@option("--credits", "credits_file", metavar="FILE", help=CREDITS_HELP)
@option("--name", "repo_id", metavar="OWNER/NAME", help="Name on the hub, for the examples in the model card.")
def export(run: str, folder: str, credits_file: str | None, **options: Any) -> None:
    """Write the models of RUN into the new folder DIR: weights, configs and a model card."""
    from audiovq.pretrained.export import export_model

    credits_path = Path(credits_file) if credits_file else None
    echo("\n".join(export_model(run, Path(folder), credits=credits_path, **options)))
