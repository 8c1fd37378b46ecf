"""The card of an exported model, ``README.md`` of its folder: data, split, scores, seed, licence,
limits, and what a constant answer would score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from launch.predicting.trained import TrainedRun
from launch.reports.tables import markdown_table, score_table

Scores = Mapping[str, Mapping[str, float]]  # split -> metric -> value
UNSTATED = "not-stated"


def model_card(trained: TrainedRun, scores: Scores, name: str, licence: str | None) -> str:
    """The whole card; its head is what hubs read.

    Args:
        name: of the bundle's folder.
        licence: as hubs write it, "apache-2.0"; None: nobody has stated one.
    """
    head = ModelCardData(
        license=licence or "other",
        license_name=None if licence else UNSTATED,
        library_name="concord",
        tags=[trained.record.task, "multimodal", trained.run.model],
        language=None,
    )
    body = "\n".join(_lines(trained, scores, name, licence))
    card = ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}\n")
    return str(card)


def _lines(trained: TrainedRun, scores: Scores, name: str, licence: str | None) -> list[str]:
    run, record = trained.run, trained.record
    lines = [f"# {run.model} on {record.dataset}", ""]
    if trained.spec.synthetic:
        lines += [
            "> Trained on synthetic data: it shows the software, and says nothing about people.",
            "",
        ]
    lines += [
        f"Trained by recipe `{run.recipe}`, seed {run.seed}, on {_samples(trained)}; the epoch with "
        f"the best validation {run.select} ({trained.progress.best_epoch + 1}).",
        "",
        "## Scores",
        "",
        *_scores(trained, scores),
        "## Inputs and outputs",
        "",
        markdown_table(["field", "what it holds", "made by"], _inputs(trained)),
        "",
        f"It answers with {_meaning(trained)}. A modality may be missing.",
        "",
        "## Use",
        "",
        *_use(trained, name),
        "## Limits",
        "",
        *_limits(trained),
        "## Licence",
        "",
        _licence_words(licence),
    ]
    return lines


def _samples(trained: TrainedRun) -> str:
    count = trained.spec.data.num_train
    unit = "entities" if trained.record.task == "alignment" else "train samples"
    return f"{count} {unit} of {trained.record.dataset}"


def _scores(trained: TrainedRun, scores: Scores) -> list[str]:
    if not scores:
        return ["The run has not ended, so it has no scores.", ""]
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    rows: dict[str, Mapping[str, float]] = dict(scores)
    for split, answers in trained.facts.constant.items():
        for answer, values in answers.items():
            rows[f"{split}, always answering the {answer}"] = values
    lines = [score_table("split", rows, names), ""]
    lines += ["The test split was scored once, after the epoch had been chosen on valid.", ""]
    if trained.facts.constant:
        lines += ["A model that does no better than a constant answer has learnt nothing.", ""]
    return lines


def _inputs(trained: TrainedRun) -> list[list[str]]:
    extraction = trained.spec.extraction or {"extractors": []}
    makers = {record["modality"]: record for record in extraction["extractors"]}
    rows = []
    for field, name in trained.spec.names.items():
        width = trained.spec.data.features.get(name)
        holds = f"frames of {width} features" if width else _tokens(trained)
        made = makers.get(field)
        rows.append([field, holds, _maker(made) if made else "features of the data set"])
    return rows


def _tokens(trained: TrainedRun) -> str:
    tokenizer = trained.record.tokenizer or {}
    size = tokenizer.get("vocab_size", trained.spec.data.vocab_size)
    return f"ids of {size} tokens ({tokenizer.get('name', 'unknown')})"


def _maker(record: Mapping[str, Any]) -> str:
    options = {key: value for key, value in record["options"].items() if key != "path"}
    licence = f"; licence {record['licence']}" if record["licence"] else ""
    return f"{record['name']} {record['version']} {json.dumps(options) if options else ''}{licence}"


def _meaning(trained: TrainedRun) -> str:
    labels = trained.record.labels
    if trained.record.task == "alignment" or labels is None:
        return "an embedding of each entity"
    if labels.kind == "classes":
        return f"the probabilities of {', '.join(labels.names)}"
    if trained.spec.data.multilabel:
        return f"logits of having each of {', '.join(labels.names)}"
    if labels.names:
        return f"scores of {', '.join(labels.names)} from {labels.low:g} to {labels.high:g}"
    return f"a score from {labels.low:g} to {labels.high:g}"


def _use(trained: TrainedRun, name: str) -> list[str]:
    lines = [
        "```python",
        "import concord",
        f'model, data = concord.load("{name}")',
        "```",
        "",
    ]
    if trained.record.task == "sentiment":
        lines += [
            "```",
            f"concord predict {name} INPUT --out scores.csv",
            "```",
            "",
        ]
    return lines


def _limits(trained: TrainedRun) -> list[str]:
    lines = [
        "- Scores are of one run with one seed; other seeds score otherwise.",
        "- It knows the speakers, the language and the recording of its data set, and no others; "
        "`concord predict` warns of samples that lie out of the middle 99.9 % of the train data.",
    ]
    if trained.record.task == "sentiment":
        lines.append(
            "- Sentiment annotations reflect their annotators; do not use the model to judge "
            "individual people."
        )
    return [*lines, ""]


def _licence_words(licence: str | None) -> str:
    stated = f"The weights: {licence}." if licence else "Nobody has stated one for the weights."
    return f"{stated} The data set and the extractors have licences of their own."
