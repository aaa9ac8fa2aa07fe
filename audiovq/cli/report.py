"""`audiovq report`: the listening page of a run."""

from pathlib import Path

from click import argument, command, option

from audiovq.cli.options import FILE, FOLDER, json_option, pick_model, show


@command()
@argument("run", type=FOLDER, required=False)
@option("--out", type=FILE, metavar="FILE", help="HTML file to write; default report.html in the run.")
@json_option
def report(run: str | None, out: str | None, json_file: str | None) -> None:
    """Write one HTML page with the sounds, a blind test and the curves of RUN (default: the newest run)."""
    from audiovq.report.page import report_run

    folder = Path(run) if run else pick_model(None, prior=False)
    if not run and not (folder / "recipe.yaml").is_file():
        raise ValueError("report: there is no run in runs/; name the folder of one, as in audiovq report DIR")
    facts = report_run(folder, Path(out) if out else None)
    show([facts["report"]], facts, json_file)
