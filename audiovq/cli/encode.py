"""`audiovq encode`: audio to codes."""

from __future__ import annotations

from pathlib import Path

import click

from audiovq.cli.group import main
from audiovq.cli.options import FILE, json_option, model_option, pick_model, print_converted


@main.command()
@click.argument("source", type=FILE, metavar="AUDIO")
@click.option(
    "-o", "--out", type=FILE, required=True, metavar="FILE",
    help="Codes file to write, such as song.codes; or a folder.",
)  # fmt: skip
@click.option(
    "--compress", is_flag=True, help="Code losslessly, to about four fifths of the size; slower to write and read."
)
@model_option
@json_option
def encode(source: str, out: str, compress: bool, model: str | None, json_file: str | None) -> None:
    """Turn an AUDIO file, or all of them below a folder, into codes."""
    from audiovq import api
    from audiovq.api.convert import Encoding, convert_file, convert_folder
    from audiovq.data import audio
    from audiovq.utils.files import check_folder

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:
        check_folder(Path(out).parent)
        audio.audio_info(Path(source))  # what cannot be read fails at once
    tokenizer = api.Tokenizer.from_pretrained(pick_model(model, prior=False))
    print_converted(convert(Encoding(tokenizer, compress), Path(source), Path(out)), json_file)
