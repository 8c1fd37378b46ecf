"""The contrastive losses across real processes give the loss and gradients of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from core.kernels.supcr.grouping import RowError
from core.losses.entity_pairs import NCA, Margin, PairLoss
from core.losses.gather_rows import gather_by_name
from core.losses.info_nce import ICL
from core.losses.inter_modal import IAL
from core.losses.subspaces import central_moment_discrepancy, soft_orthogonality
from core.losses.supcon import SupCon
from core.losses.supcr import SupCR
from core.losses.supcr_distances import SupCRByDistance
from core.losses.supcr_ranks import supcr_across_ranks

torch.set_num_threads(1)


class Subspaces(torch.nn.Module):
    """What draws two halves of the rows together and holds them apart, and a sum by label."""

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        halves = {"left": features[:, :2], "right": features[:, 2:]}
        rows, facts = gather_by_name(halves, {"label": labels, "odd": labels % 2 == 1}, weight)
        left, right = rows["left"], rows["right"][:, :2]
        correlation = soft_orthogonality(left, rows["right"])
        odd = facts["odd"] > 0
        by_label = (facts["label"][odd] * right[odd, 0]).sum()
        return central_moment_discrepancy(left, right, 5) + correlation + by_label


class SeveralSets(torch.nn.Module):
    """SupCR of four sets at once: of other widths, types, numbers of labels, and of no rows."""

    def __init__(self, temperature: float):
        super().__init__()
        self.loss = SupCR(temperature, resolution=0.5)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        sets = [
            (features, labels, weight),
            (features[:, :3].repeat(2, 1), labels.repeat(2) / 2, weight.repeat(2)),
            (features[:, 1:], labels * 0.5 + (features[:, 0] > 0), weight),
            (features, labels, torch.zeros_like(weight)),
        ]
        together = torch.stack(list(self.loss.of_sets(sets)))
        return (together * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum()


def cases() -> dict[str, Any]:
    """Name -> (loss module, number of inputs per side, what it is called with)."""
    return {
        "supcr by definition": SupCR(0.2, fused=False),
        "supcr": SupCR(0.2),
        "supcr ring": SupCR(0.2, ring=True),
        "supcr many labels": SupCR(0.2),
        "supcr beyond the range": SupCR(0.0009),
        "supcr of sets": SeveralSets(0.2),
        "supcr of sets beyond the range": SeveralSets(0.0009),
        "supcon by definition": SupCon(0.2, learnable=True, fused=False),
        "supcon": SupCon(0.2, learnable=True),
        "icl by definition": ICL(0.2, learnable=True, fused=False),
        "ial by definition": IAL(0.5, learnable=True, fused=False),
        "icl": ICL(0.2, learnable=True),
        "icl log_mean": ICL(0.2, form="log_mean", learnable=True),
        "ial": IAL(0.5, learnable=True),
        "ial released": IAL(0.5, scale="released"),
        "supcr of classes": SupCRByDistance(0.2, "classes"),
        "supcr of vectors": SupCRByDistance(0.2, "vectors"),
        "nca": NCA(4.0, 7.0),
        "margin": Margin(0.8),
        "subspaces": Subspaces(),
    }


def inputs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = 600 if name == "supcr many labels" else 23
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 5 if rows == 23 else 500, (rows,), generator=generator)
    weight = (torch.rand(rows, generator=generator) > 0.2).float()
    return features, labels, weight


def value(
    loss: Any, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    if isinstance(loss, SupCRByDistance) and loss.distance == "vectors":
        return loss(features, torch.stack([labels, labels % 2], dim=1), weight)
    if isinstance(loss, ICL | PairLoss):
        return loss(features[:, :3], features[:, 3:], weight)
    if isinstance(loss, IAL):
        return loss(
            (features[:, :3], features[:, 3:]), (features[:, 1:4], features[:, 2:5]), weight
        )
    return loss(features, labels, weight)


def share(name: str, rank: int, ranks: int) -> slice:
    """Uneven parts; the last of four ranks has nothing, and part of the second has weight zero
    anyway."""
    total = len(inputs(name)[0])
    cuts = {1: [0, total], 2: [0, 5, total], 3: [0, 9, 10, total], 4: [0, 7, 20, total, total]}[
        ranks
    ]
    return slice(cuts[rank], cuts[rank + 1])


def work(folder: str) -> None:
    """On a rank: losses, gradients and refusals, into a file of ``folder``."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    results: dict[str, Any] = {}
    for name, loss in cases().items():
        features, labels, weight = (part[share(name, rank, ranks)] for part in inputs(name))
        features.requires_grad_()
        found = value(loss.double(), features, labels, weight)
        (2.5 * found).backward()
        results[name] = (
            found.item(),
            features.grad,
            [parameter.grad for parameter in loss.parameters()],
        )
    bad = torch.randn(3, 4)
    if rank == ranks - 1:
        bad[1, 2] = float("nan")
    results["errors"] = []
    for call in (
        lambda: SupCR(0.1, normalize=False)(bad, torch.arange(3)),
        lambda: SupCon(0.1)(bad, torch.arange(3), torch.tensor([0.0, 1.0, 1.0])),
        lambda: ICL(0.1)(torch.ones(3, 4), bad),
        lambda: supcr_across_ranks(bad, torch.arange(3 * ranks), [3] * ranks, 0.1),
    ):
        try:
            call()
        except RowError as error:
            results["errors"].append(str(error))
    results["few"] = [few_rows(rank, rows, ring) for rows in (0, 1) for ring in (False, True)]
    results["second"] = second_derivative()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def few_rows(rank: int, rows: int, ring: bool) -> tuple[float, float]:
    """The loss, and how large its gradient is, where all ranks together have ``rows`` rows, on the
    first."""
    features = torch.randn(rows if rank == 0 else 0, 4, requires_grad=True)
    loss = SupCR(0.1, ring=ring)(features, torch.zeros(len(features)))
    loss.backward()
    return loss.item(), features.grad.abs().sum().item()


def second_derivative() -> list[str]:
    """What each loss says when it is differentiated twice."""
    said = []
    for loss in (SupCR(0.2), SupCR(0.2, fused=False), SupCon(0.2), SupCon(0.2, fused=False)):
        features = torch.randn(3, 4, requires_grad=True)
        value = loss(features, torch.tensor([0, 1, 0])) + features.pow(3).sum()
        (gradient,) = torch.autograd.grad(value, features, create_graph=True)
        try:
            gradient.square().sum().backward()
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    results = {}
    for name, loss in cases().items():
        features, labels, weight = inputs(name)
        features.requires_grad_()
        found = value(loss.double(), features, labels, weight)
        (2.5 * found).backward()
        results[name] = (
            found.item(),
            features.grad,
            [parameter.grad for parameter in loss.parameters()],
        )
    return results


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_loss_and_gradients_of_one_process(
    ranks, alone, tmp_path: Path
):
    run_ranks(ranks, tmp_path / "ranks", work, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for name, (loss, gradient, of_parameters) in alone.items():
        parts = [part[name] for part in found]
        assert [part[0] for part in parts] == pytest.approx([loss] * ranks, rel=1e-12), name
        together = (
            torch.cat([part[1] for part in parts]) / ranks
        )  # what averaging over ranks makes of it
        assert (together - gradient).norm() <= 1e-12 * gradient.norm(), name
        for i, expected in enumerate(of_parameters):
            torch.testing.assert_close(
                sum(part[2][i] for part in parts) / ranks, expected, rtol=1e-12, atol=0
            )
    for rank, part in enumerate(found):
        *of_modules, of_operator = part["errors"]
        of_rank = f" of rank {ranks - 1}" if ranks > 1 else ""
        assert of_modules == [f"features of row 1{of_rank} are not finite"] * 3
        there = f"SupCR on rank {ranks - 1}: features are not finite; see the error there"
        here = f"features of row 1 of rank {rank} are not finite (1 such rows of 3)"
        assert of_operator == (here if rank == ranks - 1 else there)
        assert part["few"] == [(0, 0)] * 4
        refused = [True, ranks > 1, True, ranks > 1]  # definitions can do it in one process
        assert ["no second derivative" in said for said in part["second"]] == refused, part


def test_a_ring_refuses_what_only_whole_rows_can_do():
    rows = torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
    with pytest.raises(
        ValueError,
        match=r"cannot pass rows round a ring .* at temperature 0\.0001 .* use ring=False",
    ):
        supcr_across_ranks(rows, torch.arange(6), [6], 0.0001, ring=True)
    with pytest.raises(ValueError, match="labels next to equal; use ring=False"):
        supcr_across_ranks(
            rows, torch.tensor([0, 1, 2**-60, 1, 0, 5], dtype=torch.float64), [6], 0.1, ring=True
        )
