"""Two processes (gloo), uneven batches, few examples at once, weights shared out: all give what one process gives."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from audiovq.data.shards import Shards
from audiovq.data.tracks import Scan
from audiovq.distributed import collectives, launch, rng
from audiovq.evaluation.code_statistics import held_out_bits
from audiovq.pretrained import checkpoint
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.training.devices import whole_network
from audiovq.training.loop import Training
from audiovq.training.prior_task import PriorTask
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.utils.chunking import in_microbatches
from audiovq.utils.signals import Interrupted

SETTINGS = (
    "tokenizer.vq_start_step=2", "tokenizer.losses.stft=1", "tokenizer.losses.stft_windows=[128, 512]",
    "tokenizer.model.quantizer.revival_fraction=0.2",
    "priors.0.model.conditioners=[{kind: label, name: genre}, {kind: timing}, {kind: text, max_bytes: 8}, {kind: infill, n_codes: 4}]",
    "priors.0.model.transformer.n_layers=2",
)  # fmt: skip
STEPS, STOP = 6, 3
BASE = {"steps": STEPS, "batch_size": 3, "log_steps": 1, "evaluate_steps": 3, "evaluate_batches": 2, "warmup_steps": 2,
        "checkpoint_seconds": 1e6, "learning_rate": 3e-3}  # fmt: skip
BATCH_OF_FOUR: dict[str, Any] = {"batch_size": 4}
SHARDED: dict[str, Any] = {"sharded": True, "activation_checkpointing": True, "device_batch_size": 1, "ema_decay": 0.5}


class Stopping(PriorTask):
    """A prior in whose training one process gets a signal at step `STOP`, and all but the first one are slow."""

    stop_rank = -1
    in_evaluation = False
    calls = 0

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self.in_evaluation and not self.training:
            signal.raise_signal(signal.SIGTERM)
        if self.training:
            time.sleep(0.03 * collectives.rank())
            self.calls += 1
            n_portions = {1: 3, 2: 2, 4: 1}[collectives.world_size()]
            if self.calls == n_portions * (STOP - 1) + 1 and collectives.rank() == self.stop_rank:
                signal.raise_signal(signal.SIGTERM)
        return super().forward(batch)


def prior(
    recipe: Path, run: Path, folder: Path, stop_rank: int = -1, in_evaluation: bool = False, **training: Any
) -> dict[str, torch.Tensor]:
    stage = load_recipe(str(recipe), overrides=SETTINGS).prior(0)
    config = type(stage.training)(**{**BASE, **training})
    task = Stopping(stage.model_copy(update={"training": config}), Shards(run / "codes"), 1, seed=0)
    is_meta = {p.is_meta for p in task.network.parameters()}
    assert is_meta == {config.sharded and collectives.rank() > 0}  # one process of several has the weights to share out
    task.stop_rank = stop_rank
    task.in_evaluation = in_evaluation
    if stop_rank >= 0 or in_evaluation:
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {STOP} of prior"):
            Training(task, folder, config, Accelerator()).run()
        return {}
    Training(task, folder, config, Accelerator()).run()
    network = whole_network(task)
    return {} if True in is_meta else save(folder, network)


def tokenizer(recipe: Path, run: Path, folder: Path, killed: bool = False, **training: Any) -> dict[str, torch.Tensor]:
    stage = load_recipe(str(recipe), overrides=SETTINGS)
    stage = stage.tokenizer.model_copy(
        update={"training": TrainingConfig(**{**BASE, "learning_rate": 1e-4, **training})}
    )
    data = load_recipe(str(recipe)).data
    task = TokenizerTask(stage, data, Scan.load(run / "data"), seed=0)
    work = Training(task, folder, stage.training, Accelerator())
    if killed:  # after the checkpoint of step `STOP`
        for step, batch in enumerate(work.batches("train", 0, STOP)):
            work.monitor.log_step(step + 1, work.step(step, batch), work.guard, work.model)
        work.evaluate(STOP)
        work.checkpoints.save(STOP)
        work.checkpoints.wait()
        return {}
    work.run()
    return save(folder, task.network)


def save(folder: Path, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / f"weights-{collectives.rank()}.safetensors")
    return state


def work(rank: int, recipe: Path, run: Path, folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": (folder / "port").read_text()}  # fmt: skip
    with launch.processes():
        tokenizer(recipe, run, folder / "tokenizer-two", device_batch_size=1, ema_decay=0.5)
        tokenizer(recipe, run, folder / "tokenizer-one-to-two", device_batch_size=1, ema_decay=0.5)
        prior(recipe, run, folder / "prior-two", device_batch_size=1)
        prior(recipe, run, folder / "sharded", **SHARDED)
        prior(recipe, run, folder / "muon-sharded", optimizer="muon", **SHARDED)
        prior(recipe, run, folder / "best-sharded", patience=9, **SHARDED)
        prior(recipe, run, folder / "stopped", stop_rank=1, **SHARDED)
        if rank == 0:
            shutil.copytree(folder / "stopped", folder / "two-to-one")
        collectives.barrier()
        prior(recipe, run, folder / "stopped", **SHARDED)
        prior(recipe, run, folder / "one-to-two", **SHARDED)
        (folder / f"bits-{rank}.json").write_text(json.dumps(bits(run)))


def hybrid(rank: int, recipe: Path, run: Path, folder: Path) -> None:
    """One of four processes, of which every two share one copy of the weights."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": (folder / "port").read_text()}  # fmt: skip
    with launch.processes():
        prior(recipe, run, folder / "hybrid", **BATCH_OF_FOUR, **SHARDED, shard_devices=2)
        prior(recipe, run, folder / "muon-hybrid", **BATCH_OF_FOUR, **SHARDED, shard_devices=2, optimizer="muon")
        prior(recipe, run, folder / "hybrid-stopped", stop_rank=3, **BATCH_OF_FOUR, **SHARDED, shard_devices=2)
        prior(recipe, run, folder / "hybrid-stopped", **BATCH_OF_FOUR, **SHARDED)
        with pytest.raises(ValueError, match="shard_devices: expected a divisor of the 4 devices, found 3"):
            prior(recipe, run, folder / "uneven", **BATCH_OF_FOUR, **SHARDED, shard_devices=3)


def bits(run: Path) -> list[dict[str, float]]:
    """Of the held-out codes, all of them and three windows; by two processes each its share."""
    shards, model = Shards(run / "codes"), checkpoint.load_prior(run / "prior-1")[0]
    return [held_out_bits(model, shards, "valid"), held_out_bits(model, shards, "valid", 3)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_run: Path) -> Path:
    """Everything trained once, by one process and by two."""
    folder = tmp_path_factory.mktemp("parallel")
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    (folder / "port").write_text(str(store.port))
    del store
    tokenizer(tiny_recipe, tiny_run, folder / "tokenizer-one", ema_decay=0.5)
    tokenizer(tiny_recipe, tiny_run, folder / "tokenizer-one-to-two", killed=True, ema_decay=0.5)
    prior(tiny_recipe, tiny_run, folder / "prior-one")
    prior(tiny_recipe, tiny_run, folder / "averaged-one", ema_decay=0.5)
    prior(tiny_recipe, tiny_run, folder / "best-one", ema_decay=0.5, patience=9)
    prior(tiny_recipe, tiny_run, folder / "muon-one", optimizer="muon", ema_decay=0.5)
    prior(tiny_recipe, tiny_run, folder / "one-to-two", stop_rank=0, device_batch_size=1, ema_decay=0.5)
    torch.multiprocessing.spawn(work, (tiny_recipe, tiny_run, folder), nprocs=2)  # type: ignore[attr-defined]
    prior(tiny_recipe, tiny_run, folder / "two-to-one", **SHARDED)
    return folder


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(a: Path, b: Path) -> None:
    """Weights, and every figure of every step."""
    left, right = load_file(a / "weights-0.safetensors"), load_file(b / "weights-0.safetensors")
    assert left.keys() == right.keys()
    for name in left:
        if "projections_in" in name and name.endswith("bias"):
            continue  # what follows takes the mean away: their gradient is rounding, which Adam makes a step of
        assert torch.allclose(left[name].float(), right[name].float(), atol=2e-3), name
    assert len(metrics(a)) == STEPS + 2 + (a.name == "best-one")  # which is evaluated before the first step, too
    for one, two in zip(metrics(a), metrics(b), strict=True):
        assert one == pytest.approx(two, rel=2e-3), (one, two)


@pytest.mark.parametrize(("one", "other"), [
    ("tokenizer-one", "tokenizer-two"), ("tokenizer-one", "tokenizer-one-to-two"), ("prior-one", "prior-two"), ("averaged-one", "sharded"), ("muon-one", "muon-sharded"),
    ("best-one", "best-sharded"), ("averaged-one", "two-to-one"), ("averaged-one", "one-to-two"),
])  # fmt: skip
def test_two_processes_learn_what_one_learns(found: Path, one: str, other: str) -> None:
    assert_close(found / one, found / other)


def test_held_out_bits_are_those_of_one_process(found: Path, tiny_run: Path) -> None:
    one, two = bits(tiny_run), json.loads((found / "bits-0.json").read_text())
    assert two == json.loads((found / "bits-1.json").read_text())
    assert [found["n_codes"] for found in two] == [found["n_codes"] for found in one]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("name", ["tokenizer-two", "prior-two"])
def test_ranks_end_in_the_same_weights_and_codebooks(found: Path, name: str) -> None:
    left, right = (load_file(found / name / f"weights-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_signal_to_one_process_stops_all_and_the_same_ones_go_on_to_the_same_bits(found: Path) -> None:
    left, right = (load_file(found / name / "weights-0.safetensors") for name in ("sharded", "stopped"))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert metrics(found / "sharded") == metrics(found / "stopped")
    (saved,) = (found / "stopped" / "checkpoints").iterdir()
    assert saved.name == f"step-{STEPS:08d}"


def test_a_signal_while_held_out_tracks_are_looked_at_loses_nothing(
    found: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    prior(tiny_recipe, tiny_run, tmp_path, in_evaluation=True)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads((saved / "state.json").read_text()) == {"step": STOP, "to_evaluate": True, "skipped": [0, 0]}
    prior(tiny_recipe, tiny_run, tmp_path)
    assert metrics(tmp_path) == metrics(found / "prior-one")
    left, right = (load_file(folder / "weights-0.safetensors") for folder in (tmp_path, found / "prior-one"))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_averages_are_what_is_kept(found: Path) -> None:
    plain, averaged = (load_file(found / name / "weights-0.safetensors") for name in ("prior-one", "averaged-one"))
    assert not torch.equal(plain["head.weight"], averaged["head.weight"])
    (saved,) = (found / "averaged-one" / "checkpoints").iterdir()
    state = load_file(saved / "state.safetensors")
    assert torch.equal(state["average/head.weight"], averaged["head.weight"])
    assert torch.equal(state["head.weight"], plain["head.weight"])  # they learn as if there were no averages


@pytest.mark.parametrize("at_once", [1, 2])
def test_few_examples_at_once_are_one_large_batch(
    found: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path, at_once: int
) -> None:
    prior(tiny_recipe, tiny_run, tmp_path / "prior", device_batch_size=at_once)
    assert_close(found / "prior-one", tmp_path / "prior")
    tokenizer(tiny_recipe, tiny_run, tmp_path / "tokenizer", device_batch_size=at_once, ema_decay=0.5)
    assert_close(found / "tokenizer-one", tmp_path / "tokenizer")


def half(rank: int, recipe: Path, run: Path, folder: Path) -> None:
    """One of two processes, in bfloat16."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": (folder / "port").read_text()}  # fmt: skip
    with launch.processes():
        accelerator = Accelerator(mixed_precision="bf16")
        for name, sharded in (("copied", False), ("sharded", True)):
            stage = load_recipe(str(recipe), overrides=SETTINGS).prior(0)
            task = PriorTask(stage, Shards(run / "codes"), 1, seed=0)
            config = type(stage.training)(**{**BASE, "sharded": sharded, "activation_checkpointing": sharded})
            Training(task, folder / name, config, accelerator).run()


@pytest.mark.slow
def test_bfloat16_copied_or_shared_out(found: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(int((found / "port").read_text()) + 1))
    torch.multiprocessing.spawn(half, (tiny_recipe, tiny_run, tmp_path), nprocs=2)  # type: ignore[attr-defined]
    for name in ("copied", "sharded"):
        full, low = (
            [row.get("loss", row.get("valid_loss")) for row in metrics(folder)]
            for folder in (found / "prior-one", tmp_path / name)
        )
        assert low == pytest.approx(full, rel=0.01)
        assert sum(a != b for a, b in zip(low, full, strict=True)) >= STEPS  # one of eight may be equal by chance


@pytest.mark.slow
def test_copies_of_shards_learn_what_one_process_learns(
    found: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "port").write_text(str(int((found / "port").read_text()) + 2))
    prior(tiny_recipe, tiny_run, tmp_path / "averaged-one", ema_decay=0.5, **BATCH_OF_FOUR)
    prior(tiny_recipe, tiny_run, tmp_path / "muon-one", ema_decay=0.5, optimizer="muon", **BATCH_OF_FOUR)
    torch.multiprocessing.spawn(hybrid, (tiny_recipe, tiny_run, tmp_path), nprocs=4)  # type: ignore[attr-defined]
    assert_close(tmp_path / "averaged-one", tmp_path / "hybrid")
    assert_close(tmp_path / "muon-one", tmp_path / "muon-hybrid")
    assert_close(tmp_path / "averaged-one", tmp_path / "hybrid-stopped")  # which goes on with one copy of four shards


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(found: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    prior(tiny_recipe, tiny_run, tmp_path / "prior", compile=True, activation_checkpointing=True)
    assert_close(found / "prior-one", tmp_path / "prior")
    tokenizer(tiny_recipe, tiny_run, tmp_path / "tokenizer", compile=True, ema_decay=0.5)
    assert_close(found / "tokenizer-one", tmp_path / "tokenizer")


def test_the_slowest_process_is_named(found: Path) -> None:
    """Not in the time of a step, which is the same for all, because the fast ones wait."""
    rows = [json.loads(line) for line in (found / "prior-two" / "speed.jsonl").read_text().splitlines()]
    assert [row.get("slowest_rank") for row in rows] == [None] + [1] * (STEPS - 1)  # DDP's clock starts with step 2
    assert all(row["slowest_ratio"] > 1.3 for row in rows[1:])
    for name in ("sharded", "prior-one"):  # FSDP has no such clock; there is one process
        assert "slowest_rank" not in (found / name / "speed.jsonl").read_text()


def test_pieces_have_the_values_and_gradients_of_the_whole() -> None:
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    whole = layer(x).square()
    whole.sum().backward()
    expected = x.grad, layer.weight.grad
    x.grad = layer.weight.grad = None
    pieces = in_microbatches(lambda part: layer(part).square(), 2, x)
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.allclose(torch.cat(pieces), whole)
    torch.cat(pieces).sum().backward()
    assert torch.allclose(x.grad, expected[0])  # type: ignore[arg-type]
    assert torch.allclose(layer.weight.grad, expected[1])  # type: ignore[arg-type]


def test_chances_are_the_items_own() -> None:
    cpu = torch.device("cpu")
    with rng.batch_share(5, 0, 6, cpu):
        whole = rng.rand_per_item(6, cpu), rng.rand_per_item(6, cpu)
    for first, n in ((0, 2), (2, 3), (5, 1)):
        with rng.batch_share(5, first, 6, cpu):
            assert torch.equal(rng.rand_per_item(n, cpu), whole[0][first : first + n])
            assert torch.equal(rng.rand_per_item(n, cpu), whole[1][first : first + n])
