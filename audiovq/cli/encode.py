"""`audiovq encode`: audio to codes."""

from pathlib import Path

from click import argument, command, option

from audiovq.cli.options import FILE, json_option, model_option, pick_model, show_conversion

OUT_HELP = "Codes file to write, such as song.codes; or a folder."
COMPRESS_HELP = "Compress losslessly to about four fifths of the size; slower to write and read."


@command()
@argument("source", type=FILE, metavar="AUDIO")
@option("-o", "--out", type=FILE, required=True, metavar="FILE", help=OUT_HELP)
@option("--compress", is_flag=True, help=COMPRESS_HELP)
@model_option
@json_option
def encode(source: str, out: str, compress: bool, model: str | None, json_file: str | None) -> None:
    """Turn an AUDIO file, or all of them in a folder, into codes."""
    from audiovq import api
    from audiovq.api.convert import Encoding, convert_file, convert_folder

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:  # check both files before the model is loaded
        Encoding.check(Path(source), Path(out))
    tokenizer = api.Tokenizer.from_pretrained(pick_model(model, prior=False))
    show_conversion(convert(Encoding(tokenizer, compress), Path(source), Path(out)), json_file)
