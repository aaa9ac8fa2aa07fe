"""`audiovq doctor`: can audiovq work on this machine?"""

import sys

from click import command, echo

from audiovq.cli.options import json_option, write_json


@command()
@json_option
def doctor(json_file: str | None) -> None:
    """Check the installation and make a little music. Exit code 1 if audiovq cannot work here."""
    from audiovq.pipeline.doctor import BROKEN, examine

    results = []
    for result in examine():
        results.append(result)
        if json_file != "-":
            echo(result.line)
    works = all(result.status != BROKEN for result in results)
    write_json(json_file, {"works": works, "findings": [vars(result) for result in results]})
    sys.exit(0 if works else 1)
