"""A run trains all stages of a recipe: tokenizer → decoder → codes → priors, with samples after each. A stage that is
done is not repeated, and a stage that was interrupted continues from its newest checkpoint."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from audiovq import api
from audiovq.data import storage
from audiovq.data.shards import Shards
from audiovq.data.tracks import Scan
from audiovq.distributed import collectives
from audiovq.evaluation.code_statistics import code_statistics, held_out_bits, level_counts
from audiovq.pipeline.run_folder import RunFolder
from audiovq.pipeline.run_lock import only_writer
from audiovq.pipeline.samples import generate_samples, reconstruct_samples
from audiovq.pretrained import checkpoint
from audiovq.pretrained.adopt import adopt_pretrained, pretrained_prior, pretrained_tokenizer
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import prior_folders
from audiovq.prior.extend import describe_new_labels
from audiovq.recipe import Recipe, TrainingConfig
from audiovq.report.page import report_run, try_report
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.devices import use_bf16, whole_network
from audiovq.training.encode_stage import encode_data_set
from audiovq.training.loop import Training
from audiovq.training.monitor import TrackerConfig, installed_trackers
from audiovq.training.prior_task import PriorTask
from audiovq.training.task import Task
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.utils import signals
from audiovq.utils.files import atomic_folder, write_checksums, write_text
from audiovq.utils.progress import say


class Run:
    """A recipe, its folder and the devices; with `pages`, report.html is written after each stage, with `profile` a
    trace of a few steps. With several processes, all of them call every method."""

    def __init__(self, recipe: Recipe, folder: Path, pages: bool = True, profile: bool = False):
        self.recipe, self.folder, self.pages = adopt_pretrained(recipe), folder, pages
        self.files = RunFolder(folder, self.recipe)
        self.accelerator = Accelerator(mixed_precision="bf16" if use_bf16(recipe) else "no")
        self.device: torch.device = self.accelerator.device
        self.main = collectives.rank() == 0
        self.flops: dict[str, float] = {}  # `Task.example_flops` by stage
        self.trackers = TrackerConfig(folder, installed_trackers(recipe.trackers), recipe.name, profile)

    def go(self, stages: tuple[str, ...] = ()) -> None:
        """Train the stages that are not done, all or those named; ValueError for wrong settings."""
        stages = stages or tuple(STAGES)
        if len(stages) < len(STAGES) and "decoder" in stages and not self.recipe.decoder_tuning:
            found = "which is null; set it, such as --set decoder_tuning.training.steps=10000"
            raise ValueError(f"{self.recipe.name}: stage decoder needs decoder_tuning in the recipe, {found}")
        files = self.files
        with signals.deferred():
            missing = [stage for stage in stages if not files.is_done(stage)]
            has_codes, has_report = files.is_done("codes"), collectives.from_rank_0(files.has_report())
            if not missing and (has_report or not has_codes):
                files.open()
                say(f"{self.folder}: finished, nothing to do")
                return
            with only_writer(self.folder):
                was_there = (self.folder / "recipe.yaml").is_file()
                files.open()
                # Another writer may have worked on it.
                missing = [stage for stage in stages if not files.is_done(stage)]
                if was_there and missing:
                    say(f"{self.folder}: goes on with {missing[0]}")
                if "priors" in missing:
                    self._say_missing_labels()
                for stage in missing:
                    began = time.monotonic()
                    STAGES[stage](self)
                    say(f"{stage}: done in {time.monotonic() - began:.0f} s")
                    self.report()
                if not missing:  # the run was interrupted between its last stage and the report
                    self.report()
            collectives.barrier()  # launchers take a process that ends early for a failed one

    def _say_missing_labels(self) -> None:
        """One line for labels that the priors are to learn and no training track has."""
        names = {name for stage in self.recipe.priors if not stage.from_pretrained for name in stage.model.label_names}
        codes = self.recipe.codes.path
        tracks = self.files.open_codes().index.tracks if codes else Scan.load(self.folder / "data").tracks
        for labels in tracks.of("train").labels():
            names -= labels.keys()
            if not names:
                break
        if names:
            missing = " or ".join(sorted(names))
            say(f"labels: no training track has a {missing}, so the priors cannot learn what it means")

    def train(self, task: Task, config: TrainingConfig) -> None:
        task.example_flops = self.flops.get(task.title, 0.0)
        folder, workers = self.folder / "training" / task.title, self.recipe.data.n_workers
        Training(task, folder, config, self.accelerator, workers, self.trackers).run()

    def report(self) -> None:
        """report.json, if there are codes, and report.html. All ranks call it."""
        if self.files.is_done("codes"):
            write_results(self.folder, self.files.open_codes(), self.device)
        self.write_page()
        collectives.barrier()  # the others wait there as long as it takes

    def write_page(self) -> None:
        if self.pages and self.main:
            try_report(lambda: report_run(self.folder))


def write_results(run: Path, shards: Shards, device: torch.device) -> None:
    """Measure, write report.json and print one line for each prior. All ranks call it."""
    split = "valid" if shards.index.tracks.of("valid") else "train"
    rates = [shards.index.sample_rate / hop for hop in shards.index.hop_lengths]
    bits = [held_out_bits(checkpoint.load_prior(prior)[0].to(device), shards, split) for prior in prior_folders(run)]
    if collectives.rank():
        return
    counted = zip(level_counts(shards, split), rates, strict=True)
    levels: list[dict[str, Any]] = [code_statistics(*level, shards.index.slots) for level in counted]
    for level, found in zip(levels, bits, strict=False):
        level |= found
    write_text(run / "report.json", json.dumps({"split": split, "levels": levels}, indent=2))
    tracks = "held-out tracks" if split == "valid" else "the training tracks (none is held out)"
    for i, level in enumerate(level for level in levels if "bits_per_second" in level):
        bits, unigram = level["bits_per_code"], level["unigram_bits_per_code"]
        rate = f"{level['bits_per_second']:.0f} bits per second"
        say(f"level {i}: {bits:.2f} bits per code on {tracks} (unigram {unigram:.2f}), {rate}")
        if bits > unigram:
            say(f"level {i}: this prior predicts no better than counting codes does; train on more music")


def train_tokenizer(run: Run) -> None:
    """Train a tokenizer, or copy a pretrained one or that of the recipe's codes."""
    recipe, stage = run.recipe, run.recipe.tokenizer
    if recipe.codes.path:
        if run.main:
            copy_tokenizer_of_codes(run)
        collectives.barrier()
        return
    data = run.files.scan()
    if stage.from_pretrained is not None:
        network = pretrained_tokenizer(stage.from_pretrained)
    else:
        task = TokenizerTask(stage, recipe.data, data.only(stage.only, "tokenizer.only"), recipe.seed)
        run.train(task, stage.training)
        network = task.network
    if run.main:
        reconstruct_samples(run.folder / "samples" / "tokenizer", network, data, recipe.samples, run.device)
        checkpoint.save_tokenizer(run.folder / "tokenizer", network)
    collectives.barrier()


def copy_tokenizer_of_codes(run: Run) -> None:
    """The tokenizer lies next to the codes that it made, in ../tokenizer."""
    codes, folder = str(run.files.open_codes().folder), run.folder / "tokenizer"
    place = f"{codes.rstrip('/').rpartition('/')[0]}/tokenizer"
    try:
        files = {name: storage.read(place, name) for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)}
        with contextlib.suppress(FileNotFoundError):  # of a folder that somebody made
            files[checkpoint.SUMS] = storage.read(place, checkpoint.SUMS)
    except FileNotFoundError:
        raise ValueError(f"{place}: expected the tokenizer of the codes; or copy it to {folder}") from None
    with atomic_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        # Check that codes and tokenizer belong together.
        run.files.open_codes(tokenizer_hash(checkpoint.load_tokenizer(temporary)))
        write_checksums(temporary)


def tune_decoder(run: Run) -> None:
    run.files.require("tokenizer", "decoder")
    recipe, folder = run.recipe, run.folder / "tokenizer"
    data, network = run.files.scan(), checkpoint.load_tokenizer(folder)
    collectives.barrier()  # all ranks have read the tokenizer before rank 0 replaces it
    task = DecoderTask(recipe, data.only(recipe.tokenizer.only, "tokenizer.only"), network)
    run.train(task, task.stage.training)
    if run.main:
        reconstruct_samples(run.folder / "samples" / "decoder", network, data, recipe.samples, run.device)
        checkpoint.replace_by_tuned(folder, network, task.stage.training.steps)
    collectives.barrier()


def encode_music(run: Run) -> None:
    run.files.require("tokenizer", "codes")
    recipe, stage = run.recipe, run.recipe.codes
    network = checkpoint.load_tokenizer(run.folder / "tokenizer")
    extras = {kind for kind in ("chroma", "notes") for prior in recipe.priors if prior.model.extra_inputs[kind]}
    tracks = run.files.scan().only(stage.only)
    encode_data_set(run.folder / "codes", tracks, network, stage.shifts, run.device, extras)


def train_priors(run: Run) -> None:
    """Train one prior for each level, coarse to fine, and generate samples with the priors so far."""
    run.files.require("tokenizer", "priors")
    run.files.require("codes", "priors")
    recipe = run.recipe
    shards = run.files.open_codes(api.Tokenizer.from_pretrained(run.folder, run.device).hash)
    n_done = collectives.from_rank_0(len(prior_folders(run.folder)))
    for level in range(recipe.n_priors):
        if level >= n_done:
            train_prior(run, level, shards)
        # The samples of the last prior may be missing if the run was interrupted.
        if run.main and level >= n_done - 1 and not run.files.has_prior_samples(level):
            generate_samples(run.folder, recipe.samples, run.device)
            if level + 1 < recipe.n_priors:
                run.write_page()
        collectives.barrier()


def train_prior(run: Run, level: int, shards: Shards) -> None:
    stage, source = run.recipe.prior(level), run.recipe.prior(level).from_pretrained
    start = pretrained_prior(source, level, shards.index.tokenizer_hash)[0] if source else None
    task = PriorTask(stage, shards, level, run.recipe.seed, start)
    task.recipe_key = run.recipe.prior_key(level)
    say(f"prior-{level}: the {'next' if level else 'first'} of {run.recipe.n_priors} priors, coarse to fine")
    if start and level == 0:
        say(describe_new_labels(start.spec.vocabularies, task.spec.vocabularies))
    run.train(task, stage.training)
    network = whole_network(task)
    if run.main:
        checkpoint.save_prior(run.folder / f"prior-{level}", network, stage.sampling)


STAGES = {"tokenizer": train_tokenizer, "decoder": tune_decoder, "codes": encode_music, "priors": train_priors}
