"""`audiovq recipes`: the recipes that come with audiovq."""

from click import command

from audiovq.cli.options import json_option, show


@command()
@json_option
def recipes(json_file: str | None) -> None:
    """List the recipes that come with audiovq, and what each is for."""
    from audiovq.config import known_recipes
    from audiovq.recipe import header

    found = sorted(known_recipes().values())
    lines = [f"{path.stem:12} {header(path).get('purpose', '')}" for path in found]
    show(lines, [{"name": path.stem, "file": str(path), **header(path)} for path in found], json_file)
