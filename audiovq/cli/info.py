"""`audiovq info`: facts about a file or folder."""

from pathlib import Path

from click import argument, command

from audiovq.cli.options import FILE, json_option, write_json


@command()
@argument("place", metavar="PATH", type=FILE)
@json_option
def info(place: str, json_file: str | None) -> None:
    """Describe PATH: an audio or codes file, a model or run folder, `default` or hf:CODEC. Always prints JSON."""
    from audiovq.pretrained.locate import resolve_model
    from audiovq.report.describe import describe

    facts = describe(resolve_model(place) if place == "default" or place.startswith("hf:") else Path(place))
    for file in {"-", json_file or "-"}:
        write_json(file, facts)
