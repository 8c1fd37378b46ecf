"""Write the pairs that a finished run predicts: ``python -m launch.align RUN --out pairs.csv``.

Candidates are the entities that no training link holds, or with ``--entities test`` those of the
test links alone. ``mutual`` gives pairs that are each other's nearest; ``assignment`` the
one-to-one pairing with the greatest sum.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from core import command
from core.file_access.targets import check_file
from core.files import write_atomically
from core.metrics.approximate import approximate_mutual_nearest
from core.metrics.ranking import Candidates, mean_of_nearest, mutual_nearest, tiles, unit
from core.models import MODELS
from launch.command_line import read, settings_parser
from launch.config import ConfigError, override
from launch.evaluate import read_run
from launch.reports.report import best_model
from launch.tasks.alignment import AlignmentTask

LARGEST = 20_000  # entities per side for an assignment, which holds their whole matrix


def predict(
    left: Tensor, right: Tensor, method: str, csls: int, recall: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(M, 2) rows of left and right, each in one pair at most, and the (M,) cosines of the pairs.

    Args:
        method: "mutual" or "assignment".
        csls: neighbours whose mean similarity an assignment subtracts; 0: plain cosines. Mutual
            neighbours do without.
        recall: of mutual neighbours, the share of true ones to find by FAISS; 0: compare all pairs.

    Raises:
        ConfigError: too many entities for an assignment.
    """
    left, right = unit(left), unit(right)
    if method == "mutual" and recall:
        pairs, similarity, measured = approximate_mutual_nearest(left, right, recall)
        print(f"neighbours found by FAISS, recall {measured:.4f} on a sample", file=sys.stderr)
        return pairs, similarity
    if method == "mutual":
        return mutual_nearest(left, right)
    if max(len(left), len(right)) > LARGEST:
        raise ConfigError(
            f"an assignment of {len(left)} x {len(right)} entities does not fit (at most {LARGEST} each); "
            "use --method mutual, or --entities test"
        )
    scores = torch.cat([tile for _, tile in tiles(left, right)])
    cosines = scores
    if csls:
        hubs = (
            mean_of_nearest(left, Candidates(right), csls),
            mean_of_nearest(right, Candidates(left), csls),
        )
        scores = 4 * scores - hubs[0].unsqueeze(1) - hubs[1]
    rows, columns = (
        torch.from_numpy(part)
        for part in linear_sum_assignment(scores.cpu().numpy(), maximize=True)
    )
    return torch.stack([rows, columns], 1), cosines.cpu()[rows, columns]


def align(
    run_dir: Path, changes: list[str], method: str, entities: str, csls: int, recall: float = 0.0
) -> pd.DataFrame:
    """Columns left, right (ids of the raw data) and similarity, the most similar pair first."""
    run = override(read_run(run_dir), changes)
    if MODELS[run.model].task != "alignment":
        raise ConfigError(f"{run_dir} is a run of {run.model!r}, which aligns nothing")
    task = AlignmentTask(run)
    model, state = best_model(run, run_dir, task, task.device)
    joint = task.embed(model)
    if entities == "test":
        left, right = (side.unique() for side in task.graphs.links["test"].T)
    else:
        left, right = task.open_entities(0), task.open_entities(1)
    pairs, similarity = predict(joint[left], joint[right], method, csls, recall)
    order = similarity.argsort(descending=True, stable=True)
    pairs, similarity = pairs[order].cpu(), similarity[order].cpu()
    table = {
        "left": task.graphs.ids(left.cpu()[pairs[:, 0]]),
        "right": task.graphs.ids(right.cpu()[pairs[:, 1]]),
        "similarity": similarity.numpy(),
    }
    return pd.DataFrame(table)


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        line = read(_parser(), arguments)
        run_dir, options = Path(line.name("a run's directory")), line.options
        check_file(options.out)
        if not 0 <= options.recall <= 1:
            raise ConfigError(f"--recall is a share from 0 to 1, got {options.recall:g}")
        how = (options.method, options.entities, options.csls, options.recall)
        table = align(run_dir, line.changes, *how)
        write_atomically(options.out, table.to_csv(index=False))
        print(f"{len(table)} pairs are in {options.out}")

    return command.run(work, refused=(command.Refused, OSError))


def _parser() -> argparse.ArgumentParser:
    usage = "RUN --out FILE [data=DIR] [key=value ...] [options]"
    parser = settings_parser("align", __doc__, usage)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="CSV file of the pairs"
    )
    parser.add_argument(
        "--method",
        choices=["mutual", "assignment"],
        default="mutual",
        help="mutual nearest neighbours, or the one-to-one pairing with the greatest sum",
    )
    parser.add_argument(
        "--entities",
        choices=["open", "test"],
        default="open",
        help="open: all without a training link",
    )
    parser.add_argument(
        "--csls",
        type=int,
        default=3,
        metavar="NEIGHBOURS",
        help="for an assignment; 0: plain cosines",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for mutual: find so many of the true neighbours by FAISS; 0: compare all pairs",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
