"""On a GPU: training, stages, going on, precisions and the fused contrast are what they are on a
CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_trainings import stored_tensors, train_all
from ranks import run_ranks
from small_models import small_run

from core.kernels.supcr.op import fused_supcr
from core.losses.supcr import supcr
from launch.checkpoints.snapshot import HostMemory, take
from launch.config import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def on_gpu(runs: list[Run], steps: int) -> list[dict[str, Any]]:
    """On a rank: ``train_all`` on the GPU, which ranks of tests do not look for otherwise."""
    import os

    os.environ.pop("DS_ACCELERATOR", None)
    return train_all(runs, steps)


@pytest.mark.parametrize("model", ["baseline", "hscl", "self_mm"])
def test_a_gpu_trains_to_the_losses_of_a_cpu(data: Path, tmp_path: Path, model: str):
    run = small_run(model, data, zero_stage=0)
    (cpu,) = run_ranks(1, tmp_path / "cpu", train_all, [run], 5)[0]
    (gpu,) = run_ranks(1, tmp_path / "gpu", on_gpu, [run], 5)[0]
    assert gpu["losses"] == pytest.approx(cpu["losses"], rel=1e-4)


def test_every_stage_trains_alike(data: Path, tmp_path: Path):
    base = small_run("self_mm", data)
    runs = [replace(base, zero_stage=stage) for stage in ("auto", 0, 1, 2, 3)]
    first, *others = run_ranks(1, tmp_path / "ranks", on_gpu, runs, 5)[0]
    for found in others:
        assert found["losses"] == pytest.approx(first["losses"], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_numbers_train_much_like_wide_ones(data: Path, tmp_path: Path, precision: str):
    base = small_run("self_mm", data, zero_stage=0)
    runs = [base, replace(base, precision=precision)]
    wide, narrow = run_ranks(1, tmp_path / "ranks", on_gpu, runs, 5)[0]
    assert narrow["losses"] == pytest.approx(wide["losses"], rel=0.05)


@pytest.mark.parametrize("model", ["baseline", "self_mm"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_compiled_model_trains_alike(data: Path, tmp_path: Path, model: str, cuda_graphs: bool):
    base = small_run(model, data, zero_stage=0)
    runs = [base, replace(base, compile=True, cuda_graphs=cuda_graphs)]
    plain, compiled = run_ranks(1, tmp_path / "ranks", on_gpu, runs, 7)[0]
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert compiled["scores"] == pytest.approx(plain["scores"], abs=1e-3)


def in_parts(run: Run, run_dir: Path, epochs: int) -> None:
    """On a rank: train so many epochs, and leave."""
    import os

    os.environ.pop("DS_ACCELERATOR", None)
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
        for _ in range(epochs):
            next(fit(session))
    shutdown_processes()


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_that_goes_on_ends_at_the_same_bits(data: Path, tmp_path: Path, stage: int):
    run = replace(small_run("baseline", data, zero_stage=stage), epochs=3, patience=0)
    run_ranks(1, tmp_path / "a", in_parts, run, tmp_path / "whole", 2)
    for part in ("b", "c"):
        run_ranks(1, tmp_path / part, in_parts, run, tmp_path / "parts", 1)
    expected, found = stored_tensors(tmp_path / "whole"), stored_tensors(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_fused_contrast_is_its_definition():
    rows = torch.nn.functional.normalize(torch.randn(96, 32, device="cuda")).requires_grad_()
    labels = (torch.randint(-15, 16, (96,)) / 5).to("cuda")
    found, expected = fused_supcr(rows, labels, 0.1), supcr(rows, labels, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, rows)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["triton", "triton_scan", "triton_whole"])
@pytest.mark.parametrize("kind", ["few", "distinct"])
def test_every_way_of_the_contrast_is_exact_and_repeats_its_bits(path: str, kind: str):
    generator = torch.Generator().manual_seed(5)
    rows = torch.nn.functional.normalize(torch.randn(1000, 100, generator=generator), dim=1)
    labels = torch.randn(1000, generator=generator)
    labels = labels if kind == "distinct" else labels.round()
    wide = rows.double().requires_grad_()
    fused_supcr(wide, labels, 0.05).backward()
    gradients = []
    for _ in range(2):
        x = rows.cuda().requires_grad_()
        fused_supcr(x, labels.cuda(), 0.05, path=path).backward()
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)
    assert (gradients[0] - wide.grad).norm() <= 2e-6 * wide.grad.norm()


def test_a_snapshot_is_pinned_whole_and_kept_for_the_next():
    from launch.checkpoints.snapshot import finish_copies

    memory, tensor = HostMemory(), torch.randn(1000, device="cuda")
    first = take("x", {"param": tensor}, memory)
    finish_copies()
    assert first.body.is_pinned()
    assert torch.equal(first.body.view(torch.float32), tensor.cpu())
    assert take("x", {"param": tensor}, memory).body.data_ptr() == first.body.data_ptr()
