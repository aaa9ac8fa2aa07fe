"""`audiovq push`: a model to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from click import argument, command, echo, option


@command()
@argument("folder", metavar="DIR")
@argument("repo_id", metavar="OWNER/NAME")
@option("--private", is_flag=True, help="Make a new repository private.")
@option("--revision", metavar="BRANCH", help="Branch on the hub; default the main branch.")
@option("--dry-run", is_flag=True, help="Only list the files.")
def push(folder: str, repo_id: str, **options: Any) -> None:
    """Upload DIR, which `audiovq export` wrote, to the Hugging Face hub as OWNER/NAME."""
    from audiovq import api

    echo("\n".join(api.push_folder(Path(folder), repo_id, **options)))
