"""Where somebody speaks, as the model of Silero VAD hears it, which the package ``silero-vad`` brings.

Its weights are read as safetensors and computed here, by PyTorch; nothing of the package is run. For
every 32 ms of sound there is a number from 0, nobody speaks, to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from core.command import Refused
from core.file_access.regular_files import check_regular_file
from data_shards.extract.extractors.pieces import blocks
from data_shards.extract.extractors.protocol import SOUND_RATE

PACKAGE = "silero-vad"
MODEL_FILE = "silero_vad_16k.safetensors"
STEP = 512  # samples that get one answer
BEFORE = 64  # samples before them that are heard again
AFTER = 64  # the last samples once more, backwards, so that the spectrum has an end
FREQUENCIES = 129
CELL = "lstm_cell."
STEPS_AT_ONCE = 10 * SOUND_RATE // STEP
DIGITS = 3  # of an answer: more of them would depend on the machine


class SpeechDetector(nn.Module):
    """The network for sound of 16 kHz; it remembers what it has heard, until ``begin``."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * FREQUENCIES, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(FREQUENCIES, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)
        self.begin()

    def begin(self) -> None:
        """Forget the sound before."""
        self._heard = torch.zeros(BEFORE)
        self._state = (torch.zeros(1, 1, 128), torch.zeros(1, 1, 128))

    @torch.inference_mode()
    def forward(self, samples: Tensor) -> Tensor:
        """How probable speech is in each of T steps, (T,), from samples (T * STEP,)."""
        steps = samples.reshape(-1, STEP)
        ends = torch.cat([self._heard[None], steps[:-1, -BEFORE:]])
        self._heard = steps[-1, -BEFORE:]
        waves = torch.cat([ends, steps], dim=1)[:, None]
        parts = self.stft_conv(functional.pad(waves, (0, AFTER), mode="reflect"))
        real, imaginary = parts.split(FREQUENCIES, dim=1)
        hidden = (real.square() + imaginary.square()).sqrt()  # (T, 129, 4)
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = convolution(hidden).relu()
        remembered, self._state = self.lstm(hidden.permute(0, 2, 1), self._state)  # (T, 1, 128)
        answers: Tensor = self.final_conv(remembered.permute(0, 2, 1).relu()).sigmoid()
        return answers.reshape(-1)


def speech_in(sound: Iterator[np.ndarray]) -> np.ndarray:
    """How probable speech is, (T,) float64, in every ``STEP`` samples of sound that comes in pieces
    (n,) float32; what is left at the end is not looked at.

    Raises:
        Refused: the package with the model is not there.
    """
    detector = open_detector()
    detector.begin()
    answers = []
    held = np.zeros(0, np.float32)
    for piece in blocks(sound, STEPS_AT_ONCE * STEP):
        held = np.concatenate([held, piece])
        whole = len(held) // STEP * STEP
        if whole:
            answers.append(detector(torch.from_numpy(held[:whole])).double().numpy())
            held = held[whole:]
    return np.concatenate([np.zeros(0), *answers]).round(DIGITS)


@cache
def open_detector() -> SpeechDetector:
    """The network with its weights; Refused where they are not there."""
    weights = {}
    for name, value in load_file(_model_file()).items():
        if name.startswith(CELL):  # a cell has the weights of a layer of one
            name = f"lstm.{name.removeprefix(CELL)}_l0"
        weights[name] = value
    detector = SpeechDetector().eval()
    detector.load_state_dict(weights)
    return detector


def _model_file() -> Path:
    """Where the package has its model; it is not imported."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    for entry in listed:
        path = Path(str(entry.locate()))
        if path.name == MODEL_FILE and path.is_file():
            check_regular_file(path)
            return path
    raise Refused(
        f"--speech-pauses needs the package {PACKAGE}, with its {MODEL_FILE}; install it: "
        "pip install 'concord-train[clips]'; or give --pauses, which goes by loudness"
    )
