"""What a model remembers of each train sample, as a file of each epoch in the run directory.

``samples/epoch_0003.npz`` holds ``id`` (M,), the names that the source gave to the samples that the
model has met, in the order of the train split, and beside it what ``Model.sample_record`` gave, (M,)
float32 each. ``numpy.load`` reads it without pickles. ``samples/transcripts.json``, written once, has
their transcripts by these names, where the data have some.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from core.files import write_atomically

FOLDER = "samples"
TRANSCRIPTS = "transcripts.json"


def write_sample_record(
    run_dir: Path,
    epoch: int,
    record: Mapping[str, Tensor],
    records_of: Callable[[np.ndarray], list[dict[str, Any]]],
) -> None:
    """Write the file of ``epoch``, counted from 0; one that is there already is replaced, for the
    epoch was trained again.

    Args:
        record: name -> (N,), nan where there is no number; nothing is written where it is empty.
        records_of: what the shards say of samples, by their numbers: ``id``, and ``text``.
    """
    if not record:
        return
    columns = {name: values.float().cpu().numpy() for name, values in record.items()}
    has_any = np.zeros(len(next(iter(columns.values()))), bool)
    for values in columns.values():
        has_any |= ~np.isnan(values)
    met = np.flatnonzero(has_any)
    found = records_of(met)
    names = [str(one["id"]) for one in found]
    arrays = {"id": np.array(names, dtype=np.str_)}
    arrays |= {name: values[met] for name, values in columns.items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"epoch_{epoch + 1:04d}.npz", packed.getvalue())
    texts = {
        name: str(one["text"]) for name, one in zip(names, found, strict=True) if "text" in one
    }
    if texts and not (folder / TRANSCRIPTS).exists():
        write_atomically(folder / TRANSCRIPTS, json.dumps(texts, ensure_ascii=False) + "\n")
