"""`audiovq export`: a model folder to share."""

from pathlib import Path
from typing import Any

from click import argument, command, echo, option

CREDITS_HELP = "Credits for the model card; default the file CREDITS in the folder of music."


@command()
@argument("run")
@argument("folder", metavar="DIR")
@option("--fp16", "half", is_flag=True, help="Half-precision weights: half the size, but different codes.")
@option("--onnx", is_flag=True, help="Also as ONNX files, for audiovq-player; needs the extra audiovq[onnx].")
@option("--web", is_flag=True, help="Instead, a web page that makes music; needs the extra audiovq[onnx].")
@option("--int8", is_flag=True, help="With --onnx or --web: priors with 8-bit weights, faster, but some codes differ.")
@option("--license", metavar="ID", help="License of the weights, as the hub names it: mit, cc-by-4.0, …")
@option("--credits", "credits_file", metavar="FILE", help=CREDITS_HELP)
@option("--name", "repo_id", metavar="OWNER/NAME", help="Name on the hub, for the examples in the model card.")
def export(run: str, folder: str, credits_file: str | None, onnx: bool, web: bool, **options: Any) -> None:
    """Write the models of RUN into the new folder DIR: weights, configs and a model card."""
    options["credits"] = Path(credits_file) if credits_file else None
    if web and onnx:
        raise ValueError("--onnx, --web: expected one of them; a page contains the ONNX files of the generator")
    if web:
        from audiovq.web.export import export_page

        lines = export_page(run, Path(folder), **options)
    else:
        from audiovq.pretrained.export import export_model

        lines = export_model(run, Path(folder), onnx=onnx, **options)
    echo("\n".join(lines))
