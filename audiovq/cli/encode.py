"""`audiovq encode`: audio to codes."""

from click import argument, command, option

from audiovq.cli.options import FILE, convert, json_option, model_option

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
    from audiovq.api.convert import Encoding

    convert(Encoding, source, out, model, json_file, compress)
