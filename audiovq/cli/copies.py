"""`audiovq copies`: passages that a piece shares with the training tracks."""

from click import argument, command

from audiovq.cli.options import FILE, FOLDER, json_option, show


@command()
@argument("piece", type=FILE)
@argument("run", type=FOLDER)
@json_option
def copies(piece: str, run: str, json_file: str | None) -> None:
    """Find the longest runs of codes that PIECE (audio or codes) shares with the training tracks of RUN."""
    from audiovq import api
    from audiovq.data.shards import Shards
    from audiovq.evaluation.copies import copy_reports, report_lines
    from audiovq.pipeline.sample import read_piece
    from audiovq.recipe import codes_place

    tokenizer = api.Tokenizer.from_pretrained(run)
    report = copy_reports([read_piece(tokenizer, piece)], Shards(codes_place(api.resolve_model(run))))[0]
    show(report_lines(report), report, json_file)
