"""`audiovq decode`: codes to audio."""

from pathlib import Path

from click import Choice, argument, command, option

from audiovq.cli.options import FILE, json_option, model_option, pick_model, show_conversion

FORMAT = Choice(["wav", "flac"])


@command()
@argument("source", type=FILE, metavar="CODES")
@option("-o", "--out", type=FILE, required=True, metavar="FILE", help="WAV or FLAC file to write; or a folder.")
@option("--levels", type=int, help="Decode only the first levels.")
@option("--format", "suffix", type=FORMAT, default="wav", help="Format of the files in a folder.")
@model_option
@json_option
def decode(source: str, out: str, levels: int | None, suffix: str, model: str | None, json_file: str | None) -> None:
    """Turn a CODES file, or all of them in a folder, back into audio of the original length."""
    from audiovq import api
    from audiovq.api.convert import Decoding, convert_file, convert_folder

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:  # check both files before the model is loaded
        Decoding.check(Path(source), Path(out))
    tokenizer = api.Tokenizer.from_pretrained(pick_model(model, prior=False))
    show_conversion(convert(Decoding(tokenizer, levels, f".{suffix}"), Path(source), Path(out)), json_file)
