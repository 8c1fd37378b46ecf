"""Two epochs of MMSA's own training loops, or of the restated peers, for ``benchmarks/incumbent.py``. Runs in
MMSA's environment, without this project; prints one JSON object.

    python benchmarks/incumbent_peer.py ROW FILE.pkl BERT WIDTH BATCH

What is mended of MMSA 2.2.1: its lists of models name TFR_NET, which its packages do not import, so
models are made without them; TFR_NET reads BERT from a hub's name, and wants a setting of
``ReduceLROnPlateau`` that torch no longer has; BERT's width is written as 768. Settings are MMSA's
for MOSI, but gradients are not summed over batches, and batches are as large as this project's.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from incumbent_plain import HSCL, CENet
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import BertModel

EPOCHS = 2  # of which the last counts


class Finished(Exception):
    """All epochs that count are over."""


class Timed:
    """Batches of the train split. After so many passes it ends the training that asks for another."""

    def __init__(self, batches: Iterable[Any], passes: int):
        self.batches, self.passes = batches, passes
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        if len(self.seconds) == self.passes:
            raise Finished
        begin = time.process_time()
        yield from self.batches
        self.seconds.append(time.process_time() - begin)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


class Holder(nn.Module):
    """A model where MMSA's training loops look for it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.Model = model

    def forward(self, *inputs: Any) -> Any:
        return self.Model(*inputs)


def settings(model: str, file: str, bert: str, batch: int) -> Any:
    """MMSA's for MOSI."""
    args = importlib.import_module("MMSA.config").get_config_regression(model, "mosi", "")
    args.update(
        featurePath=file,
        batch_size=batch,
        pretrained=bert,
        update_epochs=1,
        device=torch.device("cpu"),
        train_mode="regression",
        custom_feature=None,
        feature_T="",
        feature_A="",
        feature_V="",
        cur_seed=1,
        model_save_path=Path(tempfile.mkdtemp()) / "model.pth",
    )
    return args


def load(args: Any, width: int) -> dict[str, Any]:
    batches: dict[str, Any] = importlib.import_module("MMSA.data_loader").MMDataLoader(args, 0)
    args.feature_dims[0] = args.text_out = width
    args.train_samples = len(batches["train"].dataset)
    return batches


def train_self_mm(file: str, bert: str, width: int, batch: int) -> tuple[list[float], int]:
    args = settings("self_mm", file, bert, batch)
    batches = load(args, width)
    model = Holder(importlib.import_module("MMSA.models.multiTask.SELF_MM").SELF_MM(args))
    trainer = importlib.import_module("MMSA.trains.multiTask.SELF_MM").SELF_MM(args)
    # it goes through all batches once before, for their labels
    return train(trainer, model, batches, EPOCHS + 1), args.train_samples


def train_tfr_net(file: str, bert: str, width: int, batch: int) -> tuple[list[float], int]:
    args = settings("tfr_net", file, bert, batch)
    batches = load(args, width)
    models = importlib.import_module("MMSA.models.missingTask.TFR_NET.model")
    models.BertTextEncoder = partial(models.BertTextEncoder, pretrained=bert)  # type: ignore[attr-defined]
    trains = importlib.import_module("MMSA.trains.missingTask.TFR_NET")
    trains.ReduceLROnPlateau = plateau  # type: ignore[attr-defined]
    model = Holder(models.TFR_NET(args))
    return train(trains.TFR_NET(args), model, batches, EPOCHS), args.train_samples


def plateau(optimizer: Any, *, verbose: bool, **options: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, **options)


def train(trainer: Any, model: nn.Module, batches: dict[str, Any], passes: int) -> list[float]:
    """MMSA's own loop; CPU seconds of its passes over the train split."""
    timed = Timed(batches["train"], passes)
    try:
        trainer.do_train(model, batches | {"train": timed})
    except Finished:
        return timed.seconds
    raise SystemExit("the training ended before its epochs were over")


def train_plain(
    make: Any, clip: float, file: str, bert: str, width: int, batch: int
) -> tuple[list[float], int]:
    """A restated peer, in a loop that does what MMSA's does."""
    batches = load(settings("self_mm", file, bert, batch), width)["train"]
    widths = {"audio": 5, "vision": 20}
    model = make(BertModel.from_pretrained(bert, add_pooling_layer=False), widths).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    timed = Timed(batches, EPOCHS)
    for _ in range(EPOCHS):
        for one in timed:
            optimiser.zero_grad()
            loss = model.loss(one)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            loss.item()
    return timed.seconds, len(batches.dataset)


PEERS: dict[str, Any] = {
    "self_mm_128": train_self_mm,
    "self_mm_768": train_self_mm,
    "self_mm_bf16": train_self_mm,
    "tfr_net": train_tfr_net,
    "cenet_same": partial(train_plain, CENet, 2.0),
    "cenet_recipe": partial(train_plain, CENet, 2.0),
    "hscl": partial(train_plain, HSCL, 1.0),
}


def main() -> None:
    row, file, bert, width, batch = sys.argv[1:]
    torch.manual_seed(1)
    seconds, samples = PEERS[row](file, bert, int(width), int(batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"samples_per_second": samples / seconds[-1], "peak_mib": peak}))


if __name__ == "__main__":
    main()
