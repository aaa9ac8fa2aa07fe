"""`audiovq decode`: codes to audio."""

from click import Choice, argument, command, option

from audiovq.cli.options import FILE, convert, json_option, model_option


@command()
@argument("source", type=FILE, metavar="CODES")
@option("-o", "--out", type=FILE, required=True, metavar="FILE", help="Sound file to write; or a folder.")
@option("--levels", type=int, help="Decode only the first levels.")
@option("--format", "suffix", type=Choice(["wav", "flac"]), default="wav", help="Format of the files in a folder.")
@model_option
@json_option
def decode(source: str, out: str, levels: int | None, suffix: str, model: str | None, json_file: str | None) -> None:
    """Turn a CODES file, or all of them in a folder, back into audio of the original length."""
    from audiovq.api.convert import Decoding

    convert(Decoding, source, out, model, json_file, levels, f".{suffix}")
