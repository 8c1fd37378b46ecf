"""What is said of one clip or sentence: its score, what each modality adds to it, and how it runs
over time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.command import Refused
from launch.predicting.samples import NewSample, SampleMaker
from launch.predicting.scorer import Answer, Scorer
from launch.predicting.trained import CPU, TrainedModel

if TYPE_CHECKING:
    from launch.predicting.clip_input import ClipMaker

WINDOW = 10.0  # seconds of a part of the curve; a clip shorter than two of them has none

Report = dict[str, Any]  # plain JSON


class Analyst:
    """A trained model on the CPU, ready for one sample after the other.

    Args:
        folders: modality -> where the folder of its extractor's model lies on this machine.
    """

    def __init__(self, trained: TrainedModel, folders: dict[str, str] | None = None):
        targets = trained.data.target_names
        if targets:
            raise Refused(
                f"{trained.source} scores {', '.join(targets)} together, and the page shows one "
                "score; use concord predict"
            )
        self.trained = trained
        self.scorer = Scorer(trained, CPU)
        self.maker = SampleMaker(trained)
        self.no_words = self.maker.why_no_words()
        self.no_clips = ""
        self.clips: ClipMaker | None = None
        try:
            from launch.predicting.clip_input import ClipMaker

            self.clips = ClipMaker(self.maker, folders)
        except (Refused, ImportError) as problem:
            self.no_clips = str(problem)
        if self.no_words and self.no_clips:
            raise Refused(f"{self.no_words}; and {self.no_clips}")

    def about(self) -> Report:
        """What the page must know of the model."""
        labels = self.trained.labels
        return {
            "model": self.trained.name,
            "recipe": self.trained.recipe,
            "data": self.trained.record.dataset,
            "synthetic": self.trained.synthetic,
            "modalities": list(self.scorer.modalities),
            "classes": list(self.trained.class_names),
            "low": labels.low,
            "high": labels.high,
            "no_words": self.no_words,
            "no_clips": self.no_clips,
        }

    def sentence(self, text: str) -> Report:
        """Of a typed sentence.

        Raises:
            Refused: it is empty, or the model reads no words.
        """
        if not text.strip():
            raise Refused("the sentence is empty; write one")
        ids, notes = self.maker.encode(text, "the sentence")
        field = self.maker.text_field or "text"
        report = self._report(NewSample("sentence", {field: ids}, notes, text))
        others = [name for name in self.scorer.modalities if name != "text"]
        report["not_found"] = [f"{name}: a sentence has none" for name in others]
        return report

    def clip(self, file: Path, transcript: str = "") -> Report:
        """Of a clip, with a curve where it is long.

        Raises:
            Refused: the model cannot be given clips.
        """
        if self.clips is None:
            raise Refused(self.no_clips)
        from data_shards.extract.clip import ClipSource

        sample, found = self.clips.sample(ClipSource("the clip", file, transcript=transcript))
        report = self._report(replace(sample, notes=()))
        report["not_found"] = list(sample.notes)
        report["seconds"] = found.seconds
        if found.seconds >= 2 * WINDOW:
            report["curve"] = self._curve(self.clips, file, found.seconds)
        return report

    def _report(self, sample: NewSample) -> Report:
        """The answer, and those without each modality in turn, from one batch."""
        seen = [field for field in self.maker.wanted if field in sample.arrays]
        samples = [sample]
        for field in seen:
            kept = {name: array for name, array in sample.arrays.items() if name != field}
            samples.append(replace(sample, arrays=kept))
        whole, *without = self.scorer(self.maker.batch(samples))
        value = self._value(whole, whole)
        shares = []
        for field, answer in zip(seen, without, strict=True):
            rest = self._value(answer, whole)
            if value is not None and rest is not None:
                name = self.maker.wanted[field]
                shares.append({"modality": name, "without": rest, "share": value - rest})
        names = self.trained.class_names
        return {
            "score": whole.score,
            "classes": dict(zip(names, whole.probabilities, strict=bool(whole.probabilities))),
            "transcript": sample.transcript,
            "seen": list(whole.seen),
            "by_modality": whole.by_modality or {},
            "shares": shares,
            "curve": [],
            "not_found": [],
            "warnings": [*sample.notes, *whole.warnings],
            "seconds": 0.0,
        }

    def _curve(self, clips: ClipMaker, file: Path, seconds: float) -> list[Report]:
        """The value of each window; without a speech recogniser it is of sound and video alone."""
        from data_shards.extract.clip import ClipSource
        from data_shards.extract.windows import Windows, windows_of

        points = []
        for window in windows_of(ClipSource("the clip", file), Windows(WINDOW)):
            sample, _ = clips.sample(window)
            (answer,) = self.scorer(self.maker.batch([sample]))
            points.append(
                {
                    "start": window.start,
                    "end": seconds if window.end is None else window.end,
                    "value": self._value(answer, answer),
                    "class": answer.best_class,
                    "seen": list(answer.seen),
                }
            )
        return points

    def _value(self, answer: Answer, whole: Answer) -> float | None:
        """A score, or the probability of the class that the whole sample has."""
        if whole.best_class is None:
            return answer.score
        if not answer.probabilities:
            return None
        return answer.probabilities[whole.best_class]
