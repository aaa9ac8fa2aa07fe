"""`audiovq codes`: the codes of a run for other programs."""

from pathlib import Path

from click import Choice, argument, command, echo, option

from audiovq.cli import options
from audiovq.utils.environment import require


@command()
@argument("action", type=Choice(["export"]))
@argument("source", type=options.FILE, metavar="RUN")
@option("-o", "--out", type=options.FILE, required=True, metavar="FILE", help="Parquet file to write.")
@option("--split", type=Choice(["train", "valid"]), help="Only these tracks; default all.")
def codes(action: str, source: str, out: str, split: str | None) -> None:
    """Export the codes of RUN (or of a folder or URL of codes): one Parquet file with a row per track."""
    require("codes export", "pyarrow", install="pip install 'audiovq[parquet]'")
    from audiovq.api.code_dataset import open_shards
    from audiovq.data.parquet import export_parquet

    shards = open_shards(source)
    echo(f"{out}: {export_parquet(shards, Path(out), split)} tracks, {len(shards.index.hop_lengths)} levels")
