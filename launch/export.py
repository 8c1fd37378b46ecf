"""A finished run as a folder that stands alone: ``python -m launch.export RUN --out BUNDLE``.

The folder has the layout of a model hub and holds the best epoch, the tokenizer, how features are
made of clips, and a model card. It needs neither DeepSpeed nor the run nor its shards. --push puts
it on a hub; --program adds the model as a graph for serving on a CPU without this project.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core import bundle, command
from core.command import Refused
from core.file_access.json_files import read_json_object
from core.file_access.targets import check_new_folder
from launch.bundles.hub import PROGRAM, push
from launch.bundles.model_card import model_card
from launch.bundles.tokenizer_files import find_tokenizer, tokenizer_files
from launch.command_line import read, settings_parser
from launch.predicting.trained import TrainedRun, open_run
from launch.reports.provenance import provenance
from launch.tasks.data_record import plain_record

Scores = dict[str, dict[str, float]]  # split -> metric -> value


def export(
    run_dir: Path,
    out: Path,
    changes: list[str],
    *,
    tokenizer: Path | None = None,
    licence: str | None = None,
    program: bool = False,
) -> list[str]:
    """Write the best epoch of ``run_dir`` to the new folder ``out``; what is to be said of it.

    Args:
        tokenizer: the folder of the one that converted the data, where it is not the text
            encoder's.
        licence: of the weights, for the model card.
        program: add the model as a graph.
    """
    check_new_folder(out)
    trained = open_run(run_dir, changes)
    run, data = trained.run, trained.spec.data
    scores = _scores(run_dir)
    about = {
        "recipe": run.recipe,
        "seed": run.seed,
        "schema": _schema(trained),
        "roles": trained.spec.names,
        "classes": run.classes,
        "precision": run.precision,
        "max_tokens": trained.spec.max_tokens,
        "extraction": trained.spec.extraction,
        "facts": asdict(trained.facts),
        "metrics": run.metrics,
        "scores": scores,
        "epoch": trained.progress.best_epoch + 1,
        "packages": provenance()["packages"],
    }
    files: dict[str, bytes] = {}
    notes = []
    folder = find_tokenizer(_token_facts(trained), tokenizer, run.options)
    if folder is not None:
        files |= tokenizer_files(folder)
    elif _token_facts(trained) is not None:
        notes.append(
            "it holds no tokenizer, so it scores no sentences and no transcripts; give the one "
            "that converted the data with --tokenizer DIR"
        )
    if program:
        from launch.bundles.program import exported_program

        files[PROGRAM] = exported_program(run.model, trained.model, data)
    card = model_card(trained, scores, out.name, licence)
    bundle.save(out, run.model, run.options, trained.model, data, card, about, files)
    return notes


def _token_facts(trained: TrainedRun) -> dict[str, Any] | None:
    """The tokenizer of the data; None where the model reads no token ids."""
    inputs = getattr(trained.model, "inputs", None)
    reads_text = inputs is not None and "text" in inputs.modalities
    reads_ids = reads_text and not trained.spec.data.features["text"]
    return trained.record.tokenizer if reads_ids else None


def _scores(run_dir: Path) -> Scores:
    path = run_dir / "scores.json"
    if not path.exists():
        return {}
    try:
        return TypeAdapter(Scores).validate_python(read_json_object(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise Refused(
            f"{path}: {key} is no score; write the file anew with the command that trained the run"
        ) from None


def _schema(trained: TrainedRun) -> dict[str, Any]:
    """What the data must look like, in the words of the manifest they were trained from."""
    moments = trained.spec.data.moments
    by_field = {
        field: moments[name] for field, name in trained.spec.names.items() if name in moments
    }
    return plain_record(trained.record) | {"synthetic": trained.spec.synthetic, "moments": by_field}


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        line = read(_parser(), arguments)
        options = line.options
        out: Path = options.out
        notes = export(
            Path(line.name("a run's directory")),
            out,
            line.changes,
            tokenizer=options.tokenizer,
            licence=options.licence,
            program=options.program,
        )
        for note in notes:
            print(f"noted: {note}")
        print(
            f'{out} holds the model; load it with: import concord; concord.load("{out}"), or score '
            f"with: concord predict {out} INPUT --out scores.csv"
        )
        if options.push is not None:
            print(f"pushed: {push(out, options.push)}")

    return command.run(work)


def _parser() -> argparse.ArgumentParser:
    usage = "RUN --out DIR [data=DIR] [key=value ...] [options]"
    parser = settings_parser("export", __doc__, usage)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="the one that converted the data"
    )
    parser.add_argument("--licence", help="of the weights, as hubs write it: apache-2.0")
    parser.add_argument(
        "--program", action="store_true", help="add the model as a graph of torch.export"
    )
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="put it on the hub of HF_ENDPOINT, with HF_TOKEN"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
