"""Several modalities on the clock of the words."""

from __future__ import annotations

import torch
from torch import Tensor

from core.encoders.clock import on_one_clock, word_states
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec


def mask_of(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def test_aligned_modalities_stay_as_they_are() -> None:
    mask = mask_of([4, 2, 0], 5)
    frames = {m: torch.randn(3, 5, 2) * mask[..., None] for m in ("text", "audio")}
    stepped, clock = on_one_clock(frames, {"text": mask, "audio": mask})
    torch.testing.assert_close(clock, mask[:, :4], rtol=0, atol=0)
    for m in frames:
        torch.testing.assert_close(stepped[m], frames[m][:, :4], rtol=0, atol=0)


def test_unaligned_frames_are_averaged_by_true_lengths() -> None:
    """Of L frames and S words, word j gets floor(j L / S) to ceil((j + 1) L / S) - 1."""
    frames = {"text": torch.ones(3, 4, 1), "audio": torch.randn(3, 9, 2)}
    lengths = {"text": [3, 4, 2], "audio": [7, 4, 1]}
    mask = {"text": mask_of(lengths["text"], 4), "audio": mask_of(lengths["audio"], 9)}
    stepped, clock = on_one_clock(frames, mask)
    assert torch.equal(clock, mask["text"])
    for row in range(3):
        steps, own = lengths["text"][row], lengths["audio"][row]
        for j in range(steps):
            first, behind = j * own // steps, -(-(j + 1) * own // steps)
            wanted = frames["audio"][row, first:behind].mean(0)
            torch.testing.assert_close(stepped["audio"][row, j], wanted)
        assert not stepped["audio"][row, steps:].any()


def test_a_sample_without_text_goes_by_its_next_modality() -> None:
    frames = {
        "text": torch.ones(2, 2, 1),
        "audio": torch.randn(2, 5, 2),
        "vision": torch.ones(2, 9, 1),
    }
    mask = {"text": mask_of([2, 0], 2), "audio": mask_of([0, 5], 5), "vision": mask_of([9, 9], 9)}
    stepped, clock = on_one_clock(frames, mask)
    assert clock.sum(1).tolist() == [2, 5]
    torch.testing.assert_close(stepped["audio"][1], frames["audio"][1])
    assert not stepped["audio"][0].any()
    assert not stepped["text"][1].any()
    torch.testing.assert_close(stepped["vision"][..., 0], clock.float())


def test_frames_that_are_no_frames_do_not_count() -> None:
    """A gap in the middle of a modality, and what lies in it."""
    mask = {"text": mask_of([2], 2), "audio": torch.tensor([[True, False, True, True]])}
    frames = {"text": torch.ones(1, 2, 1), "audio": torch.tensor([[[1.0], [99.0], [2.0], [4.0]]])}
    stepped, _ = on_one_clock(frames, mask)
    assert stepped["audio"][0, :, 0].tolist() == [1.0, 3.0]


def test_the_summary_is_no_word(spec: DataSpec) -> None:
    data = DataSpec(task="sentiment", features={"text": 5}, max_length={"text": 6})
    text = TextEncoder(TextConfig(width=8, layers=1, heads=2), data).eval()
    frames, mask = torch.randn(2, 6, 5), mask_of([6, 3], 6)
    states, word_mask = word_states(text, frames, mask)
    hidden, _ = text(frames, mask)
    assert torch.equal(word_mask, mask)
    torch.testing.assert_close(states, hidden[:, 1:] * mask[..., None])
