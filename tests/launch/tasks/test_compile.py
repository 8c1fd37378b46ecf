"""``compile=true``: every sentiment model is one graph without a break, of which batches and steps
ask for few, and trains as it does uncompiled. (Alignment models draw neighbourhoods whose sizes
depend on the graph.)"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import Contract, gradients
from rank_trainings import train_all
from ranks import run_ranks
from small_models import SENTIMENT, small_run
from torch._dynamo.backends.debugging import aot_eager

from core.batch import Utterances
from core.dropout import SampleDropout, number_dropouts, sample_masks
from core.model import Alignment, DataSpec
from launch.config import Run
from launch.engine.compilation import allow_compiled_rnn, map_output, saying_what_compiles

# attention, hooks in the text encoder, recurrence one way, both ways, at the words
ONE_OF_EACH = ["baseline", "cenet", "ef_lstm", "misa", "self_mm"]
OTHERS = sorted(set(SENTIMENT) - set(ONE_OF_EACH))
DEEP = pytest.mark.deep


@pytest.fixture
def contract(name: str, spec: DataSpec, make_utterances: Callable[..., Utterances]) -> Contract:
    return Contract(name, spec, make_utterances)


@pytest.mark.slow  # the compiler's first part takes its time
@pytest.mark.parametrize("name", ONE_OF_EACH + [pytest.param(name, marks=DEEP) for name in OTHERS])
def test_a_model_is_one_graph(contract: Contract, monkeypatch: pytest.MonkeyPatch):
    # kept from the tests that follow
    monkeypatch.setattr(torch._dynamo.config, "allow_rnn", False)
    batches = [contract.make(8, seed=0), contract.make(8, seed=1), contract.make(5, seed=2)]
    model = number_dropouts(contract.warm(batches[0]))
    for module in model.modules():
        if isinstance(module, SampleDropout):
            module.p = 0.1
    plain_forward = model.forward
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    allow_compiled_rnn()
    compiled = torch.compile(plain_forward, backend=count, fullgraph=True)  # refuses a break
    for step, batch in enumerate(batches):
        found = []
        for forward in (plain_forward, compiled):
            model.forward = forward
            with sample_masks(1, step, batch.index):
                found.append(gradients(model, [batch]))
        (plain_losses, plain), (losses, grads) = found
        torch.testing.assert_close(losses, plain_losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grads, plain, rtol=1e-4, atol=1e-6)
    assert len(graphs) <= 2  # the second for another number of samples


def test_the_log_says_what_was_compiled_and_how_long_it_took():
    said: list[str] = []
    run = Run(model="baseline", options=None, compile=True)
    torch._dynamo.reset()
    with saying_what_compiles(run, said.append):
        double = torch.compile(lambda x: x * 2, backend="eager")
        double(torch.ones(3))
        double(torch.ones(3))
    double(torch.ones(2, 2))  # outside
    torch._dynamo.reset()
    assert "first steps" in said[0]
    assert len(said) == 2
    assert re.fullmatch(r"compiled graph 1 \(dynamo\) in \d+\.\d s, \d+\.\d s in all", said[1])


def test_every_tensor_of_an_output_is_changed():
    output = Alignment(joint=torch.ones(2), views={"a": torch.ones(3)})
    changed = map_output(output, lambda tensor: tensor + 1)
    assert changed.joint.tolist() == [2, 2]
    assert changed.views["a"].tolist() == [2, 2, 2]
    assert output.joint.tolist() == [1, 1]


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize(("model", "ranks"), [("baseline", 2), ("self_mm", 1)])
def test_a_compiled_model_trains_alike(coded_shards: Path, tmp_path: Path, model: str, ranks: int):
    base = small_run(model, coded_shards, zero_stage=1)
    runs = [replace(base, compile=compiled) for compiled in (False, True)]
    plain, compiled = run_ranks(ranks, tmp_path / "ranks", train_all, runs, 7)[0]
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert compiled["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    assert compiled["scores"] == pytest.approx(plain["scores"], abs=1e-4)
