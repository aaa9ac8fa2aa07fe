"""Two processes on one machine (gloo): statistics are those of one process with all the data."""

import datetime
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from audiovq.distributed import collectives, launch
from audiovq.tokenizer.data_init import Bypass, initialise_codebooks, initialise_statistics
from audiovq.tokenizer.decoders import IstftDecoder
from audiovq.tokenizer.encoder import EncoderConfig
from audiovq.tokenizer.quantizer import QUANTIZERS, EMAQuantizer
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.nonfinite import NonFiniteGuard
from audiovq.training.tokenizer_task import codebook_use

SIZES = {"fsq": {"levels": (4, 4)}}


def latents(rank: int) -> torch.Tensor:
    return F.normalize(torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(rank)), dim=-1)


def ema() -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(EMAQuantizer.Config(codebook_size=8, codebook_dim=4, decay=0.5, revival_fraction=0.0))


def network(kind: str) -> VQVAE:
    torch.manual_seed(0)
    size = SIZES.get(kind, {"codebook_size": 16, "codebook_dim": 4})
    return VQVAE(
        VQVAEConfig(
            sample_rate=8000, hop_lengths=(64, 32, 32), dim=16, whiten_latents=True, encoder=EncoderConfig(n_blocks=1),
            decoder=IstftDecoder.Config(dim=16, n_blocks=1), quantizer=QUANTIZERS[kind].Config(**size),
        )
    ).train()  # fmt: skip


def work(rank: int, folder: str) -> None:
    """One of two processes; it writes its results to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    quantizer = ema()
    quantizer.update([latents(rank)], [quantizer.encode(latents(rank))])
    np.savez(f"{folder}/ema-{rank}.npz", **{k: v.numpy() for k, v in quantizer.state_dict().items()})
    perplexities, usages = codebook_use([torch.full((1, 10), rank), torch.zeros(1, 4, dtype=torch.int64)], 4)
    np.savez(f"{folder}/use-{rank}.npz", perplexities=perplexities.numpy(), usages=usages.numpy())
    guard, moved = NonFiniteGuard(torch.device("cpu")), torch.zeros(2)
    for losses in ((1.0, 1.0), (1.0, float("nan")), (float("inf"), -float("inf")), (2.0, 3.0)):
        guard.remember([moved])
        moved += 1
        guard.check(torch.tensor(losses[rank]), [torch.tensor(1.0)])
    np.savez(f"{folder}/skips-{rank}.npz", moved=moved.numpy(), counts=guard.counts.numpy())
    for kind in QUANTIZERS:
        trained = network(kind)
        model = DistributedDataParallel(trained)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
        for step in range(5):  # two before there are codes, three with them
            torch.manual_seed(10 * step + rank)
            waveform = 0.3 * torch.randn(2, 1, 640)
            quantizers: list = trained.quantizers()
            if step == 0:
                initialise_statistics(trained, waveform)
            if step == 2:
                initialise_codebooks(trained, waveform)
            out = model(waveform, quantizers if step >= 2 else [Bypass(q) for q in quantizers])
            torch.stack([out.reconstructions[0].square().mean(), *out.losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        np.savez(f"{folder}/trained-{kind}-{rank}.npz", **{k: v.numpy() for k, v in trained.state_dict().items()})
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)  # type: ignore[attr-defined]
    return folder


def test_counts_and_sums_are_those_of_all_data(found: Path) -> None:
    alone = ema()
    together = [latents(rank) for rank in range(2)]
    alone.update(together, [alone.encode(x) for x in together])
    for rank in range(2):
        state = np.load(found / f"ema-{rank}.npz")
        for name, value in alone.state_dict().items():
            assert np.allclose(state[name], value.numpy(), atol=1e-5), name


def test_perplexity_and_usage_are_those_of_all_data(found: Path) -> None:
    for rank in range(2):
        use = np.load(found / f"use-{rank}.npz")
        assert use["perplexities"] == pytest.approx([2.0, 1.0])
        assert use["usages"] == pytest.approx([0.5, 0.25])


def test_all_ranks_skip_a_step_that_is_not_finite_on_one(found: Path) -> None:
    for rank in range(2):
        skips = np.load(found / f"skips-{rank}.npz")
        assert skips["moved"].tolist() == [2.0, 2.0]  # the first and the last
        assert skips["counts"].tolist() == [2, 0]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_ranks_stay_equal_in_training(found: Path, kind: str) -> None:
    one, two = (np.load(found / f"trained-{kind}-{rank}.npz") for rank in range(2))
    assert one.files == two.files
    assert all(np.array_equal(one[name], two[name]) for name in one.files)
    start = network(kind).state_dict()
    learned = [name for name, _ in network(kind).named_parameters()]
    assert not any(np.array_equal(one[name], start[name].numpy()) for name in learned)


def slow_or_hung(rank: int, folder: str, hangs: bool) -> None:
    """Rank 1 works alone for twice the limit, or stops; rank 0 waits for it and writes what it met."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_PORT": folder.split("-")[-1],
    }
    collectives.start(datetime.timedelta(seconds=2))
    if rank == 1:
        (Path(folder) / "pid").write_text(str(os.getpid()))
        if hangs:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(4)
    met = "all"
    try:
        collectives.barrier()
    except RuntimeError as error:
        met = str(error)
        os.kill(int((Path(folder) / "pid").read_text()), signal.SIGCONT)
    if rank == 0:
        (Path(folder) / "met").write_text(met)
    os._exit(0)


def killed(rank: int, folder: str) -> None:
    """Rank 1 of three is killed while the others wait for it."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": folder.split("-")[-1], **ranks}
    try:
        with launch.processes():
            assert collectives.largest(rank, -rank, rank == 1) == [2, 0, 1]
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            collectives.all_reduce_(torch.zeros(1))
    except ValueError as error:
        (Path(folder) / f"met-{rank}").write_text(str(error))


def test_a_killed_process_is_named_by_another(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        folder = tmp_path / f"port-{probe.getsockname()[1]}"
    folder.mkdir()
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=killed, args=(rank, str(folder))) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert ranks[1].exitcode == -signal.SIGKILL
    expected = (
        f"process 1 on {socket.gethostname()} has ended, or its machine or network has: perhaps because memory ran"
    )
    for rank in (0, 2):
        assert (folder / f"met-{rank}").read_text().startswith(f"process {rank}: {expected}")


@pytest.mark.parametrize("hangs", [False, True])
def test_long_work_is_waited_for_and_a_process_that_hangs_is_not(tmp_path: Path, hangs: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        folder = tmp_path / f"port-{probe.getsockname()[1]}"
    folder.mkdir()
    torch.multiprocessing.spawn(slow_or_hung, (str(folder), hangs), nprocs=2)  # type: ignore[attr-defined]
    expected = "Timed out: process 1 shows no sign of life" if hangs else "all"
    assert (folder / "met").read_text() == expected
