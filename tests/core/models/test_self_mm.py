"""Self-MM: the label update restated over whole epochs, golden values, and what the memory guards
against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.label_memory import FUSION, LabelMemory, generate
from core.models.self_mm import SelfMM

MakeUtterances = Callable[..., Utterances]
VIEWS = ("text", "audio")
WIDTHS = {FUSION: 6, "text": 4, "audio": 3}
N = 12


def features(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    return {
        view: rng.normal(size=(size, width)).astype(np.float32) for view, width in WIDTHS.items()
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {view: torch.from_numpy(rows) for view, rows in arrays.items()}


class Naive:
    """The released order of steps, in float64, with centres as means over all samples after every
    batch."""

    def __init__(
        self, label: np.ndarray, limit: float, squared: bool, widths: dict[str, int] = WIDTHS
    ):
        self.label, self.limit, self.squared = label, limit, squared
        self.bank = {view: np.zeros((len(label), width)) for view, width in widths.items()}
        self.labels = {view: label.copy() for view in widths}
        self.centres: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def alpha(self, view: str, rows: np.ndarray) -> np.ndarray:
        positive, negative = (
            np.linalg.norm(rows - centre, axis=1) for centre in self.centres[view]
        )
        if self.squared:
            positive, negative = positive**2, negative**2
        return (negative - positive) / (positive + 1e-8)

    def step(self, epoch: int, index: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        rows = {view: x.astype(np.float64) for view, x in rows.items()}
        if epoch > 1:
            y, of_fusion = self.label[index], self.alpha(FUSION, rows[FUSION])
            for view in rows.keys() - {FUSION}:
                of_view = self.alpha(view, rows[view])
                made = 0.5 * of_view / of_fusion * y + 0.5 * (y + of_view - of_fusion)
                made = made.clip(-self.limit, self.limit)
                self.labels[view][index] = (epoch - 1) / (epoch + 1) * self.labels[view][
                    index
                ] + 2 / (epoch + 1) * made
        for view, x in rows.items():
            self.bank[view][index] = x
            sides = (self.labels[view] > 0, self.labels[view] < 0)
            self.centres[view] = tuple(self.bank[view][side].mean(0) for side in sides)  # type: ignore[assignment]


@pytest.mark.parametrize("squared", [False, True])
def test_labels_over_epochs_are_those_of_the_paper(squared: bool) -> None:
    rng = np.random.default_rng(3)
    label = rng.uniform(-3, 3, N).astype(np.float32)
    label[4] = 0
    naive = Naive(label.astype(np.float64), 3.0, squared)
    memory = LabelMemory(N, WIDTHS, limit=3.0, squared=squared)
    for epoch in range(1, 6):
        memory.begin_epoch()
        for index in np.split(rng.permutation(N), 3):
            rows = features(rng, len(index))
            naive.step(epoch, index, rows)
            memory.update(torch.from_numpy(index), torch.from_numpy(label[index]), tensors(rows))
        everyone = torch.arange(N)
        for view in VIEWS:
            found = memory.labels(view, everyone, torch.from_numpy(label))
            np.testing.assert_allclose(found, naive.labels[view], rtol=2e-4, atol=2e-4)
            if epoch == 1:
                np.testing.assert_array_equal(found, label)
            centres = memory.of("sums", view) / memory.of("sizes", view)[:, None]
            np.testing.assert_allclose(centres, naive.centres[view], rtol=1e-3, atol=1e-4)


def test_golden_values() -> None:
    memory = LabelMemory(2, {FUSION: 2, "text": 2}, limit=3.0)
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for _ in range(1):  # one visit puts the two samples in the centres' places
        memory.update(
            torch.tensor([0, 1]), torch.tensor([1.0, -1.0]), {FUSION: centres, "text": centres}
        )
    fusion, text = torch.tensor([[0.5, 0.2]]), torch.tensor([[-0.2, 0.4]])
    of_fusion, of_text = memory.attraction({FUSION: fusion, "text": text})
    assert float(of_fusion) == pytest.approx(1.810080, abs=2e-6)
    assert float(of_text) == pytest.approx(-0.292893, abs=2e-6)
    made, cut = generate(of_text, of_fusion, torch.tensor([1.0]), 3.0)
    assert float(made) == pytest.approx(-0.632393, abs=2e-6)
    assert not cut
    memory.update(torch.tensor([0]), torch.tensor([1.0]), {FUSION: fusion, "text": text})
    assert float(memory.labels("text", torch.tensor([0]), torch.tensor([1.0]))) == pytest.approx(
        -0.088262, abs=2e-6
    )


def test_later_labels_weigh_more() -> None:
    """Unrolled, the label generated at visit k has weight 2k / (n (n + 1)) after visit n."""
    weights = np.zeros(21)
    for n in range(2, 21):
        weights *= (n - 1) / (n + 1)
        weights[n] += 2 / (n + 1)
    np.testing.assert_allclose(weights[2:], 2 * np.arange(2, 21) / (20 * 21))


def test_a_side_without_samples_delays_the_labels() -> None:
    memory = LabelMemory(4, WIDTHS, limit=3.0)
    label, index = torch.tensor([1.0, 2.0, 0.0, 0.5]), torch.arange(4)
    for _ in range(3):
        memory.update(index, label, tensors(features(np.random.default_rng(0), 4)))
    assert torch.equal(memory.labels("text", index, label), label)
    assert memory.report()["text_labels_cut"] == 0


def test_a_fused_distance_near_equal_does_not_blow_labels_up() -> None:
    tiny = torch.tensor([-1e-8, 1e-8, 0.0, -0.0])
    made, cut = generate(torch.ones(4), tiny, torch.ones(4), 3.0)
    assert made.tolist() == [-3.0, 3.0, 3.0, 3.0]
    assert cut.all()


def test_labels_count_from_the_middle_of_their_range() -> None:
    """Ratings in [1, 5] give the labels that the same ratings in [-2, 2] give, moved by 3."""
    rng = np.random.default_rng(1)
    label = torch.from_numpy(rng.uniform(-2, 2, N).astype(np.float32))
    plain, moved = LabelMemory(N, WIDTHS, limit=2.0), LabelMemory(N, WIDTHS, limit=2.0, middle=3.0)
    for _ in range(3):
        rows = tensors(features(rng, N))
        plain.update(torch.arange(N), label, rows)
        moved.update(torch.arange(N), label + 3, rows)
    found = moved.labels("text", torch.arange(N), label + 3)
    torch.testing.assert_close(
        found, plain.labels("text", torch.arange(N), label) + 3, rtol=1e-4, atol=1e-4
    )


def test_a_missing_modality_keeps_its_label_and_stays_out_of_the_centres() -> None:
    rng = np.random.default_rng(2)
    label = torch.from_numpy(rng.uniform(-3, 3, N).astype(np.float32))
    has = torch.arange(N) != 5
    memory = LabelMemory(N, WIDTHS, limit=3.0)
    for _ in range(3):
        memory.update(torch.arange(N), label, tensors(features(rng, N)), {"text": has})
    assert memory.labels("text", torch.arange(N), label)[5] == label[5]
    assert memory.of("visits", "text")[5] == 0
    assert int(memory.of("sizes", "text").sum()) == N - 1
    assert int(memory.of("sizes", "audio").sum()) == N


def test_running_sums_do_not_drift(spec: DataSpec) -> None:
    rng = np.random.default_rng(4)
    label = torch.from_numpy(rng.uniform(-3, 3, N).astype(np.float32))
    memory = LabelMemory(N, WIDTHS, limit=3.0)
    for _ in range(50):
        for index in np.split(rng.permutation(N), 4):
            memory.update(torch.from_numpy(index), label[index], tensors(features(rng, len(index))))
    before = {view: memory.of("sums", view).clone() for view in WIDTHS}
    sizes = {view: memory.of("sizes", view).clone() for view in WIDTHS}
    memory.begin_epoch()
    for view in WIDTHS:
        torch.testing.assert_close(memory.of("sums", view), before[view], rtol=1e-9, atol=1e-9)
        assert torch.equal(memory.of("sizes", view), sizes[view])


def test_batches_of_another_size_give_the_same_first_labels_and_memory_survives_saving() -> None:
    rng = np.random.default_rng(5)
    label = torch.from_numpy(rng.uniform(-3, 3, N).astype(np.float32))
    memory, other = LabelMemory(N, WIDTHS, limit=3.0), LabelMemory(N, WIDTHS, limit=3.0)
    for _ in range(2):
        memory.update(torch.arange(N), label, tensors(features(rng, N)))
    other.load_state_dict(memory.state_dict())
    rows = tensors(features(rng, N))
    for one in (memory, other):
        one.update(torch.arange(N), label, rows)
    everyone = torch.arange(N)
    assert torch.equal(
        memory.labels("text", everyone, label), other.labels("text", everyone, label)
    )


def restated_network(
    model: SelfMM, batch: Utterances
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores and representations by view, in float64, from the text's summary on; sample by sample
    over time."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def last_state(at: str, frames: np.ndarray) -> np.ndarray:
        state = cell = np.zeros(weights[f"{at}.weight_hh_l0"].shape[1])
        for frame in frames:
            gates = weights[f"{at}.weight_ih_l0"] @ frame + weights[f"{at}.bias_ih_l0"]
            gates = gates + weights[f"{at}.weight_hh_l0"] @ state + weights[f"{at}.bias_hh_l0"]
            let_in, kept, new, out = np.split(gates, 4)
            cell = cell / (1 + np.exp(-kept)) + np.tanh(new) / (1 + np.exp(-let_in))
            state = np.tanh(cell) / (1 + np.exp(-out))
        return state

    frames, mask = model.inputs(batch)
    coded = {"text": model.text(frames["text"], mask["text"])[0][:, 0].detach().double().numpy()}
    for m in ("audio", "vision"):
        rows = [x[there].double().numpy() for x, there in zip(frames[m], mask[m], strict=True)]
        coded[m] = linear(
            f"encoders.{m}.out", np.stack([last_state(f"encoders.{m}.last.lstm", x) for x in rows])
        )
    coded[FUSION] = np.concatenate([coded[m] for m in ("text", "audio", "vision")], axis=1)
    hidden = {view: np.maximum(linear(f"heads.{view}.first", x), 0) for view, x in coded.items()}
    score = {
        view: linear(f"heads.{view}.score", np.maximum(linear(f"heads.{view}.second", x), 0))[:, 0]
        for view, x in hidden.items()
    }
    return score, hidden


def test_training_over_epochs_is_the_paper_restated(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Network, losses and labels while the weights move: loss by the labels of before, then labels,
    then centres."""
    torch.manual_seed(0)
    whole = make_utterances(N)
    text = TextConfig(width=16, layers=1, heads=2, dropout=0.0)
    model = SelfMM(
        SelfMM.Config(text=text, drop_text=0.0, drop_audio=0.0), replace(spec, num_train=N)
    ).train()
    widths = {view: head.width for view, head in model.heads.items()}
    naive = Naive(whole.label.double().numpy(), 3.0, squared=False, widths=widths)
    optimizer, order = torch.optim.Adam(model.parameters(), lr=1e-2), torch.randperm(N)
    for epoch in range(1, 4):
        model.begin_epoch(epoch - 1)
        for index in order.split(N // 2):
            batch = replace(whole.map(lambda x, index=index: x[index]), loss_scale=2 / N)
            score, hidden = restated_network(model, batch)
            y = naive.label[index]
            wanted = {"task": np.abs(score[FUSION] - y).mean()}
            for m in ("text", "audio", "vision"):
                target = naive.labels[m][index]
                wanted[m] = (np.tanh(np.abs(target - y)) * np.abs(score[m] - target)).mean()
            output = model(batch)
            losses = model.losses(output, batch)
            assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(
                wanted, rel=2e-3, abs=1e-4
            )
            assert all(
                (wanted[m] > 0) == (epoch > 2) for m in widths.keys() - {FUSION}
            )  # labels move in epoch 2
            naive.step(epoch, index.numpy(), hidden)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            model.update_memory_bank(model.memory_bank_rows(output, batch))
            optimizer.step()
    for m in widths.keys() - {FUSION}:
        found = model.memory.labels(m, torch.arange(N), whole.label)
        np.testing.assert_allclose(found, naive.labels[m], rtol=2e-3, atol=2e-3)
        assert np.abs(naive.labels[m] - naive.label).max() > 0.1


@torch.no_grad()
def test_unimodal_heads_rest_in_the_first_epoch(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """All weights are zero before a label has moved; then tanh of how far it moved."""
    torch.manual_seed(0)
    batch = make_utterances()
    model = SelfMM(SelfMM.Config(), spec).train()
    output = model(batch)
    first = model.losses(output, batch)
    assert first["text"] == first["audio"] == first["vision"] == 0
    for _ in range(2):
        model.update_memory_bank(model.memory_bank_rows(model(batch), batch))
    output = model(batch)
    found = {name: float(value) for name, value in model.losses(output, batch).items()}
    y = batch.label.double().numpy()
    wanted = {"task": np.abs(output.score.detach().numpy() - y).mean()}
    for m, score in output.views.items():
        target = model.memory.labels(m, batch.index, batch.label).numpy()
        wanted[m] = (np.tanh(np.abs(target - y)) * np.abs(score.detach().numpy() - target)).mean()
        assert wanted[m] > 0
    assert found == pytest.approx(wanted, rel=1e-4)
    assert set(model.eval().losses(output, batch)) == {"task"}


def test_distance_from_human_unimodal_labels_is_reported(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    human = batch.label + 0.25
    human[3] = torch.nan  # not annotated
    batch = replace(batch, unimodal_labels={"text": human})
    model = SelfMM(SelfMM.Config(), spec).train()
    model.update_memory_bank(model.memory_bank_rows(model(batch), batch))
    found = model.report()
    assert found["text_label_to_human"] == pytest.approx(0.25)
    assert found["text_multimodal_to_human"] == pytest.approx(0.25)
    assert "audio_label_to_human" not in found
    model.begin_epoch(1)
    assert "text_label_to_human" not in model.report()


def test_learning_rate_groups_are_by_modality(spec: DataSpec) -> None:
    model = SelfMM(SelfMM.Config(), spec)
    found = model.param_groups()
    assert set(found) == {"audio", "vision", "main"}  # a small text encoder learns with the rest
    assert len(found["audio"]) == len(list(model.encoders["audio"].parameters()))


def test_a_memory_of_nobody_is_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="number of training samples, got 0"):
        SelfMM(SelfMM.Config(), replace(spec, num_train=0))
