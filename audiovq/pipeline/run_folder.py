"""The folder of a run: which stages are done, the saved recipe, the scanned music and the codes.

run/recipe.yaml              the complete recipe
run/data/                    scan_cache.jsonl, tracks.jsonl and .npy, quarantine.jsonl, report.json
run/tokenizer/               a model folder: config.json, model.safetensors; with a tuned decoder, if any
run/codes/                   shards; absent if the recipe has the codes of another run
run/prior-0/ …               a model folder for each level, coarse to fine
run/training/<stage>/        checkpoints and metrics.jsonl
run/metrics/                 health.jsonl: problems, and what to change; tensorboard/
run/samples/<stage>/         audio
run/report.json              codebook usage, and bits of each prior
run/report.html              all of this in one page, to listen to and look at
"""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import torch

from audiovq.data.shards import Shards
from audiovq.data.sources import local_music
from audiovq.data.storage import is_url
from audiovq.data.tracks import Scan, check_music_folder, scan
from audiovq.distributed import collectives
from audiovq.pretrained import checkpoint
from audiovq.pretrained.locate import prior_folders
from audiovq.recipe import RESUME_MUTABLE, Recipe, first_difference, load_saved_recipe
from audiovq.utils.files import file_sha256, write_text
from audiovq.utils.progress import say, track as progress


class RunFolder:
    """The files of a run. All ranks see what rank 0 sees."""

    def __init__(self, path: Path, recipe: Recipe):
        self.path, self.recipe = path, recipe

    def is_done(self, stage: str) -> bool:
        recipe, tokenizer, n = self.recipe, self.path / "tokenizer", self.recipe.n_priors
        has_tokenizer, has_codes = (tokenizer / checkpoint.CONFIG).is_file(), bool(recipe.codes.path)
        is_tuning = recipe.decoder_tuning is not None and not has_codes
        done = {
            "tokenizer": lambda: has_tokenizer,
            "decoder": lambda: not is_tuning or (has_tokenizer and checkpoint.tuning_steps(tokenizer) > 0),
            "codes": lambda: has_codes or (self.path / "codes" / "index.json").is_file(),
            "priors": lambda: n == 0 or (len(prior_folders(self.path)) == n and self.has_prior_samples(n - 1)),
        }
        return bool(collectives.from_rank_0(done[stage]()))

    def require(self, earlier: str, stage: str) -> None:
        """Raises ValueError if a stage that `stage` builds on is not done."""
        if not self.is_done(earlier):
            raise ValueError(f"{self.path}: stage {stage} needs stage {earlier}; run that first")

    def has_prior_samples(self, level: int) -> bool:
        return (self.path / "samples" / f"prior-{level}" / f"item-{self.recipe.samples.n - 1}.wav").is_file()

    def has_report(self) -> bool:
        try:
            levels = json.loads((self.path / "report.json").read_text())["levels"]
        except (OSError, ValueError, KeyError):
            return False
        return sum("bits_per_second" in level for level in levels) == len(prior_folders(self.path))

    def open(self) -> None:
        """Scan the music and save the recipe; ValueError for no music, or if there is a run of another recipe."""
        path = self.path / "recipe.yaml"
        is_main, is_new = collectives.rank() == 0, not collectives.from_rank_0(path.exists())
        if is_new:
            (self.open_codes if self.recipe.codes.path else self._scan)()
        if is_main and is_new:  # the recipe comes last: a folder without usable music stays free
            write_text(path, self.recipe.to_yaml())
        collectives.barrier()
        saved = load_saved_recipe(path)
        before, now = saved.model_dump(), self.recipe.model_dump()
        # The recipe's file may have another name, and the same music another place.
        before["name"], before["data"]["folder"] = now["name"], now["data"]["folder"]
        if saved.decoder_tuning is None:  # it may be added to a finished run, because codes stay the same
            before["decoder_tuning"] = now["decoder_tuning"]
        old, new = saved.codes.path, self.recipe.codes.path
        if old and new and not is_url(old) and not Path(old).exists():  # the tokenizer's hash is compared later
            before["codes"]["path"] = new
        if difference := first_difference(before, now, ignored=RESUME_MUTABLE):
            key, _, old = difference.partition(" → ")[0].partition(": ")
            again = f"go on with this one by --set {shlex.quote(f'{key}={old}')}"
            advice = f"choose another --out for a new run, or {again}"
            raise ValueError(f"{self.path}: holds a run of another recipe ({difference}); {advice}")
        if (folder := self.recipe.data.folder) != saved.data.folder and not new:
            self._move(folder)
        collectives.barrier()
        if is_main and saved != self.recipe:
            write_text(path, self.recipe.to_yaml())

    def _scan(self) -> None:
        folder, data = self.path / "data", self.recipe.data
        if not data.folder:
            raise ValueError(f"{self.recipe.name}: no music folder; give one with --data DIR")
        cache = f"scan_cache-{collectives.rank()}.jsonl" if collectives.world_size() > 1 else "scan_cache.jsonl"
        result = scan(local_music(data.folder), data, folder / cache)
        if collectives.rank() > 0:
            return
        result.only(self.recipe.tokenizer.only, "tokenizer.only")
        result.only(self.recipe.codes.only)  # fails before the tokenizer is trained, not hours later
        result.save(folder)
        tracks = f"{len(result.tracks.of('train'))} training and {len(result.tracks.of('valid'))} held-out tracks"
        minutes, n_aside = result.tracks.seconds.sum() / 60, len(result.rejected)
        see = f" (see {folder / 'quarantine.jsonl'})" if n_aside else ""
        say(f"data: {tracks}, {minutes:.1f} minutes; {n_aside} files set aside{see}")

    def scan(self) -> Scan:
        """The tracks as they were when the run began. Raises ValueError if some are not there any more. All ranks call it,
        and each looks for its share of the files."""
        found = Scan.load(self.path / "data")
        if (place := self.recipe.data.folder) and (copy := local_music(place)) != Path(place):
            found.folder = copy  # the cache of this machine, made again if it is gone
        share, n = slice(collectives.rank(), None, collectives.world_size()), len(found.tracks)
        gone = torch.zeros(n, dtype=torch.uint8)
        names = (facts["path"] for facts in found.tracks.take(share).facts())
        gone[share] = torch.tensor([not (found.folder / name).is_file() for name in names], dtype=torch.uint8)
        if missing := collectives.all_reduce_(gone).nonzero().flatten().tolist():
            advice = "put them back, name the folder that has them with --data"
            advice += ", or choose another --out to train without them"
            lost = f"{len(missing)} of the {n} tracks with which this run began are missing"
            raise ValueError(f"{found.folder}: {lost}, the first: {found.tracks[missing[0]].path}; {advice}")
        return found

    def _move(self, folder: str) -> None:
        """The music lies in another folder now; ValueError if it is not the same music. All ranks call it."""
        own = Scan.load(self.path / "data")
        moved = dataclasses.replace(own, folder=Path(os.path.realpath(local_music(folder))))
        if collectives.rank() > 0:
            return
        check_music_folder(moved.folder)
        for track in progress(moved.tracks, "compare", len(moved.tracks)):
            path = moved.folder / track.path
            if not path.is_file() or file_sha256(path) != track.sha256:
                advice = f"leave --data out to go on with {own.folder}, name the folder that has this music now"
                problem = f"began with other music than {folder}, where {track.path} is missing or differs"
                raise ValueError(f"{self.path}: {problem}; {advice}, or choose another --out for a new run")
        moved.save(self.path / "data")

    def open_codes(self, tokenizer_hash: str | None = None) -> Shards:
        """The codes of this run, or those that its recipe names; ValueError if they do not fit recipe or tokenizer."""
        shards = Shards(self.recipe.codes.path or self.path / "codes", tokenizer_hash)
        model, index = self.recipe.tokenizer.model, shards.index
        rate, hops, size = expected = model.sample_rate, list(model.hop_lengths), model.codebook_size
        found = index.sample_rate, index.hop_lengths, index.codebook_size
        if found != expected:
            wanted = f"as in tokenizer.model, sample_rate {rate}, hop_lengths {hops} and codebook_size {size}"
            others = f"{found[0]}, {found[1]} and {found[2]}; change tokenizer.model to these"
            raise ValueError(f"{shards.folder}: expected codes {wanted}, found {others}")
        return shards
