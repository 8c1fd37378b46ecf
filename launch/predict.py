"""Score something new with a trained model: ``concord predict RUN_OR_BUNDLE INPUT --out FILE``.

INPUT is a clip, a folder of clips, a table in the layout of docs/data.md (labels are not needed), a
.txt with a sentence in each line, or a shard folder; --text "..." scores one sentence. The result
is CSV or JSON lines, by the name of FILE; a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from core import distributed
from core.command import Refused
from core.environment.credentials import remember
from data_shards.extract.windows import windows_asked_for
from launch.command_line import CommandLine, read, settings_parser
from launch.config import ConfigError
from launch.engine.processes import init_processes, shutdown_processes
from launch.monitor import control_plane
from launch.monitor.rank_command import run_rank
from launch.predicting.input_kinds import Input, Part, open_input
from launch.predicting.rows_file import Row, RowsFile, as_line, check_result, row_of
from launch.predicting.scorer import Scorer
from launch.predicting.trained import TrainedModel, open_trained

BATCH_SIZE = 64


def score_part(scorer: Scorer, part: Part) -> list[tuple[int, Row]]:
    """The rows of one part, with the place of each."""
    if part.batch is None:
        return []
    answers = scorer(part.batch)
    rows = []
    for place, name, answer, notes in zip(part.places, part.ids, answers, part.notes, strict=True):
        rows.append((place, row_of(name, answer, notes, scorer)))
    return rows


def gather(rows: list[tuple[int, Row]]) -> list[tuple[int, Row]]:
    """The rows of all ranks, in order. Collective."""
    text = json.dumps(rows)
    sizes = [int(size) for size in control_plane.gather_text(str(len(text)))]
    texts = control_plane.gather_text(text, max(sizes))
    gathered = [tuple(row) for part in texts for row in json.loads(part)]
    return sorted(gathered, key=lambda row: row[0])


def predict(scorer: Scorer, given: Input, out: Path, batch_size: int) -> tuple[int, int]:
    """Score all of an input into ``out``; how many rows, and how many of them have a warning.

    Every rank calls it; rank 0 writes.
    """
    identity = {"model": identity_of(scorer.trained), **given.identity}
    if distributed.rank() > 0:
        start = int(control_plane.broadcast_text(""))
        for part in given.parts(start, batch_size):
            gather(score_part(scorer, part))
        return 0, 0
    with RowsFile(out, identity) as file:
        start = file.done
        control_plane.broadcast_text(str(start))
        bar = tqdm(total=given.total, initial=start, unit=" samples", disable=None)
        with bar:
            for part in given.parts(start, batch_size):
                rows = gather(score_part(scorer, part))
                new = [row for place, row in rows if place >= start]
                file.add(new)
                bar.update(len(new))
        warned = sum(row["warning"] is not None for row in file.rows())
        return file.finish(), warned


def identity_of(trained: TrainedModel) -> dict[str, Any]:
    """What makes a model this one: its weights, and how it reads texts."""
    total = 0.0
    for value in trained.model.state_dict().values():
        total += float(value.double().abs().sum())
    return {
        "source": trained.source,
        "name": trained.name,
        "sum of weights": total,
        "tokenizer": str(trained.tokenizer) if trained.tokenizer else None,
    }


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        line = read(_parser(), arguments)
        options = line.options
        model, source = _names(line)
        if source is not None:
            source = remember(source)  # its credentials are in no message
        sentences: list[str] = options.text or []
        if options.out is None and not sentences:
            raise ConfigError("--out FILE says where the scores go, such as --out scores.csv")
        if options.out is not None:
            check_result(options.out)
        if options.batch_size < 1:
            raise ConfigError(f"--batch-size {options.batch_size}: at least 1")
        windows = windows_asked_for(options.windows, options.pauses, options.speech_pauses)
        is_one_of_many = int(os.environ.get("WORLD_SIZE") or 1) > 1  # as launchers say
        if is_one_of_many:
            init_processes()
        trained = open_trained(model, line.changes, options.tokenizer)
        given = open_input(
            trained,
            source,
            sentences=sentences,
            split=options.split,
            windows=windows,
            folders=folders_of(options.folder),
        )
        scorer = Scorer(trained)
        if options.out is None:
            _print_rows(scorer, given, options.batch_size)
        else:
            _write(scorer, given, options)
        if is_one_of_many:
            shutdown_processes()

    again = "run the same command again: what was scored is kept"
    return run_rank(work, when_stopped=again)


def _write(scorer: Scorer, given: Input, options: argparse.Namespace) -> None:
    if distributed.rank() == 0:
        for note in given.notes:
            print(f"noted: {note}")
    count, warned = predict(scorer, given, options.out, options.batch_size)
    if distributed.rank() > 0:
        return
    if scorer.trained.synthetic:
        print("The model was trained on SYNTHETIC data: its scores say nothing about people.")
    if warned:
        print(f"WARNING: {warned} of {count} rows have a warning; see the column of that name")
    print(f"{count} rows are in {options.out}")


def _print_rows(scorer: Scorer, given: Input, batch_size: int) -> None:
    for part in given.parts(0, batch_size):
        for _, row in gather(score_part(scorer, part)):
            if distributed.rank() == 0:
                print(as_line(row, ".jsonl", False), end="")


def _names(line: CommandLine) -> tuple[str, str | None]:
    """The model, and the input unless a sentence is given."""
    wanted = 1 if line.options.text else 2
    if len(line.names) != wanted:
        what = "a run or an exported model"
        behind = " and --text alone" if line.options.text else ", then what to score"
        raise ConfigError(f"name {what}{behind}; found {len(line.names)} names: {line.names}")
    return line.names[0], line.names[1] if wanted == 2 else None


def folders_of(words: Iterable[str]) -> dict[str, str]:
    """``audio=DIR`` words as modality -> folder."""
    folders = {}
    for word in words:
        modality, equals, folder = word.partition("=")
        if not (modality and equals and folder):
            raise Refused(f"--folder {word!r}: write MODALITY=DIR, such as --folder audio=wavlm")
        folders[modality] = folder
    return folders


def _parser() -> argparse.ArgumentParser:
    usage = "RUN_OR_BUNDLE INPUT --out FILE [data=DIR] [options]"
    parser = settings_parser("predict", __doc__, usage)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the result, .csv or .jsonl; --text may do without"
    )
    parser.add_argument("--text", action="append", metavar="SENTENCE", help="instead of INPUT")
    parser.add_argument("--split", help="of shards or a table; by default all of them")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="the one of the training data, if need be"
    )
    parser.add_argument(
        "--windows", type=float, metavar="SECONDS", help="cut clips into parts and score each"
    )
    parser.add_argument(
        "--pauses", action="store_true", help="with --windows: cut where it is quietest"
    )
    parser.add_argument(
        "--speech-pauses",
        action="store_true",
        help="with --windows: cut where nobody speaks, also where it is loud (package silero-vad)",
    )
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="MODALITY=DIR",
        help="where the model of an extractor lies now",
    )
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="SAMPLES", help="scored at once"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
