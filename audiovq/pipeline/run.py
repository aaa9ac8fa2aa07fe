"""A run: one folder, one recipe, all stages in order. Whatever is finished is not done again.

run/recipe.yaml              complete, as it was run
run/data/                    scan_cache.jsonl, tracks.jsonl, quarantine.jsonl, report.json
run/tokenizer/               config.json, model.safetensors (a model folder); with a tuned decoder if the recipe asks for it
run/codes/                   shards; none if the recipe names those of another run
run/prior-0/ …               a model folder a level, coarse to fine
run/training/<stage>/        checkpoints and metrics.jsonl
run/metrics/                 health.jsonl: what went wrong, and what to change; tensorboard/
run/samples/<stage>/         audio of every level, and spectrograms
run/report.json              what was reached
run/report.html              all of this to listen to and to look at
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from audiovq import api
from audiovq.data import audio
from audiovq.data.audio_writer import write_audio
from audiovq.data.shards import Shards
from audiovq.data.tracks import Scan, scan
from audiovq.distributed import collectives
from audiovq.evaluation.bigram import bigram_bits
from audiovq.evaluation.code_statistics import code_statistics, held_out_bits, level_counts
from audiovq.pretrained import checkpoint
from audiovq.pretrained.adopt import adopt_pretrained, pretrained_prior, pretrained_tokenizer
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.prior.extend import describe_new_labels
from audiovq.recipe import Recipe, first_difference, fixed, load_saved_recipe
from audiovq.report.page import report_run, try_report
from audiovq.report.spectrograms import draw_spectrograms
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.adapters import merge_adapters
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.devices import use_bf16, whole_network
from audiovq.training.encode_stage import encode_data_set
from audiovq.training.loop import Training
from audiovq.training.prior_task import PriorTask
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.training.trackers import TrackerConfig, installed_trackers
from audiovq.utils import signals
from audiovq.utils.files import atomic_folder, check_folder, write_checksums, write_text
from audiovq.utils.progress import say

STAGES = ("tokenizer", "decoder", "codes", "priors")


class Run:
    """The stages of a recipe in a folder. Each method does its stage, or nothing if it is done."""

    def __init__(self, recipe: Recipe, folder: Path, pages: bool = True):
        self.recipe, self.folder, self.pages = adopt_pretrained(recipe), folder, pages
        self.accelerator = Accelerator(mixed_precision="bf16" if use_bf16(recipe) else "no")
        self.main = collectives.rank() == 0
        self.reporting = TrackerConfig(folder, (), recipe.name)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def done(self, stage: str) -> bool:
        folder = self.folder
        if stage == "tokenizer":
            return (folder / "tokenizer" / checkpoint.CONFIG).is_file()
        if stage == "decoder":
            return bool(self.recipe.codes.path or not self.recipe.decoder_tuning) or (
                self.done("tokenizer") and checkpoint.tuning_steps(folder / "tokenizer") > 0
            )
        if stage == "codes":
            return bool(self.recipe.codes.path) or (folder / "codes" / "index.json").is_file()
        n = self.recipe.n_priors
        return n == 0 or (len(api.prior_folders(folder)) == n and self._sampled(n - 1))

    def go(self, stages: tuple[str, ...] = STAGES) -> None:
        """Do the stages that are not done; raises ValueError or `signals.Interrupted`."""
        with signals.deferred():
            self._go(stages)

    def _go(self, stages: tuple[str, ...]) -> None:
        if stages != STAGES and "decoder" in stages and not self.recipe.decoder_tuning:
            raise ValueError(
                f"{self.recipe.name}: stage decoder needs decoder_tuning in the recipe, which is null; "
                "set it, such as --set decoder_tuning.training.steps=10000"
            )
        self._claim_folder()
        finished = all(self.done(stage) for stage in stages) and (self._reported() or not self.done("codes"))
        if collectives.from_rank_0(finished):
            say(f"{self.folder}: finished, nothing to do")
            return
        self.reporting = TrackerConfig(self.folder, installed_trackers(self.recipe.trackers), self.recipe.name)
        for stage in stages:
            if not collectives.from_rank_0(self.done(stage)):
                began = time.monotonic()
                getattr(self, stage)()
                say(f"{stage}: done in {time.monotonic() - began:.0f} s")
                self.report()
                self._page()
        if self.main and not self._reported():  # a run was stopped between the last stage and its report
            self.report()
            self._page()
        collectives.barrier()  # none leaves before all are done: launchers take that for a failure

    def _claim_folder(self) -> None:
        """Look at the data and save the recipe in a new folder; refuse one that holds another recipe's run."""
        path = self.folder / "recipe.yaml"
        if self.main and not path.exists():  # the recipe comes last: a folder with wrong data is not claimed
            check_folder(self.folder)
            self._open_codes() if self.recipe.codes.path else self._scan()
            self._save_recipe(path)
        collectives.barrier()
        saved = load_saved_recipe(path)
        added = saved.decoder_tuning is None and self.recipe.decoder_tuning is not None
        if added:  # may come later: all else in the folder stays valid
            saved = saved.model_copy(update={"decoder_tuning": self.recipe.decoder_tuning})
        difference = first_difference(fixed(saved.model_dump()), fixed(self.recipe.model_dump()))
        if difference:
            raise ValueError(
                f"{self.folder}: holds a run of another recipe ({difference}); choose another --out, or delete the folder"
            )
        collectives.barrier()
        if self.main and (added or saved != self.recipe):
            self._save_recipe(path)

    def _open_codes(self, tokenizer_hash: str | None = None) -> Shards:
        """The codes of this run, or those that its recipe names; raises ValueError if they do not fit the recipe."""
        shards, model = (
            Shards(self.recipe.codes.path or self.folder / "codes", tokenizer_hash),
            self.recipe.tokenizer.model,
        )
        expected = model.sample_rate, list(model.hop_lengths), model.codebook_size
        found = shards.index.sample_rate, shards.index.hop_lengths, shards.index.codebook_size
        if found != expected:
            raise ValueError(
                f"{shards.folder}: expected codes as tokenizer.model says, sample_rate {expected[0]}, hop_lengths {expected[1]} "
                f"and codebook_size {expected[2]}, found {found[0]}, {found[1]} and {found[2]}; change it to these"
            )
        return shards

    def _save_recipe(self, path: Path) -> None:
        write_text(path, self.recipe.to_yaml())

    def _scan(self) -> None:
        place, data = self.folder / "data", self.recipe.data
        if not data.folder:
            raise ValueError(f"{self.recipe.name}: no music folder; give one with --data DIR")
        result = scan(Path(data.folder), data, cache_file=place / "scan_cache.jsonl")
        result.only(self.recipe.codes.only)  # not only after the tokenizer's hours is it said that nothing matches
        result.save(place)
        report = result.report()
        say(
            f"data: {report['train_tracks']} training and {report['valid_tracks']} held-out tracks, "
            f"{report['hours'] * 60:.1f} minutes; {report['quarantined']} files set aside"
            + (f" (see {place / 'quarantine.jsonl'})" if report["quarantined"] else "")
        )

    def scan(self) -> Scan:
        """The data set as it was when the run began."""
        return Scan.load(self.folder / "data")

    def tokenizer(self) -> None:
        if self.recipe.codes.path:
            self._take_tokenizer() if self.main else None
            collectives.barrier()
            return
        data = self.scan()
        stage = self.recipe.tokenizer
        if stage.from_pretrained is not None:
            network = pretrained_tokenizer(stage.from_pretrained)
        else:
            task = TokenizerTask(stage, self.recipe.data, data, self.recipe.seed)
            self._train(task, "tokenizer", stage.training)
            network = task.network
        if self.main:
            self._reconstruct_samples("tokenizer", network, data)
            checkpoint.save_tokenizer(self.folder / "tokenizer", network)
            self._show_samples("tokenizer", stage.training.steps)
        collectives.barrier()

    def _take_tokenizer(self) -> None:
        """Copy the one that made the codes, which lies beside them."""
        shards, place = self._open_codes(), self.folder / "tokenizer"
        try:
            files = {
                name: shards.storage.read(f"../tokenizer/{name}") for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)
            }
        except FileNotFoundError:
            raise ValueError(
                f"{shards.storage.path('../tokenizer')}: expected the tokenizer of the codes there; or copy it to {place}"
            ) from None
        with atomic_folder(place) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            self._open_codes(tokenizer_hash(checkpoint.load_tokenizer(temporary)))
            write_checksums(temporary)

    def decoder(self) -> None:
        self._need("tokenizer", "decoder")
        data, stage, place = self.scan(), self.recipe.decoder_tuning, self.folder / "tokenizer"
        assert stage is not None, "without decoder_tuning the stage counts as done"
        network = checkpoint.load_tokenizer(place)
        collectives.barrier()  # all have read it before one replaces it
        task = DecoderTask(stage, self.recipe.tokenizer, self.recipe.data, data, network, self.recipe.seed)
        self._train(task, "decoder", stage.training)
        if self.main:
            self._reconstruct_samples("decoder", network, data)
            checkpoint.replace_by_tuned(place, network, stage.training.steps)
            self._show_samples("decoder", stage.training.steps)
        collectives.barrier()

    def codes(self) -> None:
        self._need("tokenizer", "codes")
        network = checkpoint.load_tokenizer(self.folder / "tokenizer")
        chroma = any(stage.model.extra_inputs["chroma"] for stage in self.recipe.priors)
        stage = self.recipe.codes
        encode_data_set(self.folder / "codes", self.scan().only(stage.only), network, stage.shifts, self.device, chroma)

    def priors(self) -> None:
        self._need("tokenizer", "priors")
        self._need("codes", "priors")
        tokenizer = api.Tokenizer.from_pretrained(self.folder, self.device)
        shards = self._open_codes(tokenizer.hash)
        n_done = collectives.from_rank_0(len(api.prior_folders(self.folder)))
        for level in range(self.recipe.n_priors):
            if level >= n_done:
                self._train_prior(level, shards)
            if self.main and level >= n_done - 1 and not self._sampled(level):
                self._generate_samples()
                self._show_samples(f"prior-{level}", self.recipe.prior(level).training.steps)
                self._page() if level + 1 < self.recipe.n_priors else None  # `go` writes the last
            collectives.barrier()

    def _train_prior(self, level: int, shards: Shards) -> None:
        stage = self.recipe.prior(level)
        known = shards.index.tokenizer_hash
        start = pretrained_prior(stage.from_pretrained, level, known) if stage.from_pretrained else None
        task = PriorTask(stage, shards, level, self.recipe.seed, start)
        task.recipe_key = self.recipe.prior_key(level)
        if start and level == 0:
            say(describe_new_labels(start.spec.vocabularies, task.spec.vocabularies))
        self._train(task, f"prior-{level}", stage.training)
        network = whole_network(task)
        if stage.lora is not None:
            merge_adapters(network)
        if self.main:
            checkpoint.save_prior(self.folder / f"prior-{level}", network, stage.sampling)

    def _sampled(self, level: int) -> bool:
        return (self.folder / "samples" / f"prior-{level}" / "items.png").is_file()

    def _need(self, earlier: str, stage: str) -> None:
        if not collectives.from_rank_0(self.done(earlier)):
            raise ValueError(f"{self.folder}: stage {stage} needs stage {earlier}, which is not done; run it first")

    def _train(self, task: Any, title: str, config: Any) -> None:
        folder = self.folder / "training" / title
        workers = self.recipe.data.workers
        Training(task, title, folder, config, self.recipe.seed, workers, self.accelerator, self.reporting).run()

    def _show_samples(self, stage: str, step: int) -> None:
        """To the trackers, too, after the stage is done: not twice if it was interrupted."""
        trackers = self.reporting.open(stage, step, step)
        trackers.audio(step, self.folder / "samples" / stage)
        trackers.close()

    def _reconstruct_samples(self, stage: str, network: VQVAE, data: Scan) -> None:
        """Source and every level prefix of a few held-out tracks."""
        folder, tokenizer = self.folder / "samples" / stage, api.Tokenizer(network, self.device)
        for track in (data.split("valid") or data.split("train"))[: self.recipe.samples.n]:
            n = int(self.recipe.samples.seconds * track.sample_rate)
            source, rate = audio.read_audio(
                data.folder / track.path, tokenizer.sample_rate, tokenizer.config.channels, 0, n
            )
            codes = tokenizer.encode(source, rate)
            waveforms = {"source": source}
            waveforms |= {f"levels-{k}": tokenizer.decode(codes, k) for k in range(1, len(codes.levels) + 1)}
            for name, waveform in waveforms.items():
                write_audio(folder / f"{Path(track.path).stem}-{name}.wav", waveform, rate)
            draw_spectrograms(waveforms, rate, folder / f"{Path(track.path).stem}.png")

    def _generate_samples(self) -> None:
        """New music with the levels trained so far."""
        generator = api.Generator.from_pretrained(self.folder, self.device)
        wanted = self.recipe.samples
        folder = self.folder / "samples" / f"prior-{len(generator.priors) - 1}"
        pieces = generator.sample(wanted.seconds, seed=0, n=wanted.n, progress=True)
        for i, piece in enumerate(pieces):
            write_audio(folder / f"item-{i}.wav", piece, generator.sample_rate)
        draw_spectrograms({f"item {i}": p for i, p in enumerate(pieces)}, generator.sample_rate, folder / "items.png")

    def _page(self) -> None:
        """report.html, written anew."""
        if self.pages and self.main:
            try_report(lambda: report_run(self.folder))

    def report(self) -> None:
        """report.json: codebook use of the data set, and bits of each finished prior on held-out tracks beside those of
        counting."""
        if not self.main or not self.done("codes"):
            return
        shards = self._open_codes()
        split = "valid" if shards.index.tracks.of("valid") else "train"
        levels: list[dict[str, Any]] = code_statistics(level_counts(shards, split), shards.index)
        for level, folder in enumerate(api.prior_folders(self.folder)):
            levels[level] |= held_out_bits(checkpoint.load_prior(folder)[0].to(self.device), shards, split)
            levels[level]["bigram_bits_per_code"] = bigram_bits(shards, level, split)
        write_text(self.folder / "report.json", json.dumps({"split": split, "levels": levels}, indent=2))
        finished = [level for level in levels if "bits_per_second" in level]
        for i, level in enumerate(finished):
            say(
                f"level {i}: {level['bits_per_code']:.2f} bits a code on held-out tracks "
                f"(unigram {level['unigram_bits_per_code']:.2f}, bigram {level['bigram_bits_per_code']:.2f}), {level['bits_per_second']:.0f} bits a second"
            )

    def _reported(self) -> bool:
        """True if report.json speaks of all that is finished."""
        try:
            levels = json.loads((self.folder / "report.json").read_text())["levels"]
        except (OSError, ValueError, KeyError):
            return False
        return sum("bits_per_second" in level for level in levels) == len(api.prior_folders(self.folder))

