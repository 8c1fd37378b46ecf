"""Clips to features: ``python -m data_shards.extract CLIPS --out DIR``. Same clips and options, same
bytes, for any number of processes.

CLIPS is a clip, a folder of clips, or a table with a file for each (docs/clips.md). DIR becomes a
table in the layout of docs/data.md with its arrays, and extraction.json, the recipe by which new
clips are treated alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import Refused, run
from core.file_access.targets import check_folder
from core.files import write_atomically
from data_shards.convert import convert, parse_labels
from data_shards.extract.clip_jobs import FEATURES, Plan, run_rows
from data_shards.extract.clip_table import ClipRow, find_clips
from data_shards.extract.extractors.registry import EXTRACTORS, NONE, Extractors, choose
from data_shards.extract.feature_table import TABLE, Summary, columns_of, lines, write_table
from data_shards.extract.media import LIMITS, Limits
from data_shards.extract.recipe import RECIPE_FILE, read_recipe
from data_shards.extract.windows import Windows, windows_asked_for
from data_shards.sources.raw_dataset import KNOWN_LABELS, Options

LOCK = ".lock"
LOCK_WAIT = 5.0  # seconds; processes of a killed extraction take a moment to end


def extract(
    clips: Path,
    out: Path,
    extractors: Extractors,
    *,
    root: Path | None = None,
    windows: Windows | None = None,
    limits: Limits = LIMITS,
    jobs: int = 1,
    force: bool = False,
    progress: bool = False,
) -> Summary:
    """Write the features of all clips into ``out``, and last its table.

    What was cut short goes on; clips that are done and have not changed are left as they are.

    Args:
        root: see ``find_clips``.
        jobs: processes; 0 for this one alone.
        force: do all clips anew, with whatever recipe was there before.

    Raises:
        Refused: the clips' table cannot be read, or ``out`` holds something else.
    """
    if jobs < 0:
        raise Refused(f"--jobs {jobs}: give 1 or more")
    recipe = extractors.recipe
    plan = Plan(out, recipe, windows, limits)
    _check_target(out)

    def rows() -> Iterator[ClipRow]:
        return find_clips(clips, root)

    modalities = [record.modality for record in recipe.extractors if record.width]
    columns = columns_of(rows(), modalities, cut=windows is not None)
    count = sum(1 for _ in rows())
    with _claimed(out):
        _claim_recipe(out, extractors, force)
        records = run_rows(plan, rows(), jobs, extractors, force=force)
        for _ in tqdm(records, total=count, unit="clip", desc="extract", disable=not progress):
            pass
        return write_table(plan, rows(), columns)


def _check_target(out: Path) -> None:
    """Refuse a folder that takes no files, or has other things in it."""
    check_folder(out)
    known = {RECIPE_FILE, LOCK, FEATURES}
    if out.exists() and any(out.iterdir()) and not known & {path.name for path in out.iterdir()}:
        raise Refused(
            f"{out} is not empty and holds no features; give another --out, or empty it first"
        )


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """``out`` for this extraction alone."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, timeout=LOCK_WAIT):
            yield
    except Timeout:
        raise Refused(
            f"another extraction is writing to {out}; wait for it, or give another --out"
        ) from None


def _claim_recipe(out: Path, extractors: Extractors, force: bool) -> None:
    """Write the recipe first; the table that was there is no longer vouched for."""
    before = None if force else read_recipe(out)
    if before is not None and before != extractors.recipe:
        raise Refused(
            f"{out} holds features of other extractors (see its {RECIPE_FILE}); "
            "give another --out, or --force to extract anew"
        )
    (out / TABLE).unlink(missing_ok=True)
    write_atomically(out / RECIPE_FILE, extractors.recipe.to_json())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("extract", __doc__)
    parser.add_argument(
        "clips", type=Path, help="a clip, a folder of clips, or a table (.csv, .jsonl, .parquet)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for table and features")
    for modality, default in (("text", "given"), ("audio", "egemaps"), ("vision", "face68")):
        names = [name for kind, name in EXTRACTORS if kind == modality]
        parser.add_argument(
            f"--{modality}",
            default=default,
            metavar="NAME",
            help=f"{', '.join(names)} or {NONE}; NAME:PATH with a model, NAME,key=value with "
            f"options (default: {default})",
        )
    parser.add_argument(
        "--align",
        choices=["none", "words"],
        default="none",
        help="words: one frame for each word, the mean while it is spoken",
    )
    parser.add_argument(
        "--windows", type=float, metavar="SECONDS", help="cut clips into windows of this length"
    )
    parser.add_argument(
        "--pauses", action="store_true", help="end windows where it is quietest, not on the second"
    )
    parser.add_argument(
        "--speech-pauses",
        action="store_true",
        help="end windows where nobody speaks, also where it is loud (package silero-vad)",
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where the table's files are (default: beside it)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes; the bytes are the same for any number"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=LIMITS.seconds,
        metavar="SECONDS",
        help=f"refuse longer clips (default: {LIMITS.seconds:g})",
    )
    parser.add_argument("--force", action="store_true", help="extract finished clips anew")
    shards = parser.add_argument_group("to convert what was extracted at once")
    shards.add_argument("--shards", type=Path, metavar="DIR", help="folder for the shards")
    shards.add_argument("--dataset", choices=sorted(KNOWN_LABELS), help="as for convert")
    shards.add_argument("--labels", metavar="LOW:HIGH[:STEP]", help="as for convert")
    shards.add_argument("--tokenizer", metavar="DIR", help="as for convert")
    return parse(parser, argv)


def _main(arguments: argparse.Namespace) -> None:
    windows = windows_asked_for(arguments.windows, arguments.pauses, arguments.speech_pauses)
    options = _options(arguments)
    choices = {name: getattr(arguments, name) for name in ("text", "audio", "vision")}
    summary = extract(
        arguments.clips,
        arguments.out,
        choose(choices, arguments.align),
        root=arguments.root,
        windows=windows,
        limits=Limits(seconds=arguments.longest),
        jobs=arguments.jobs,
        force=arguments.force,
        progress=True,
    )
    for line in lines(summary, arguments.out):
        print(line)
    if options is not None:
        convert(
            arguments.out / TABLE,
            arguments.shards,
            options,
            processes=max(arguments.jobs, 1),
            force=arguments.force,
            progress=True,
        )
        print(f"shards are in {arguments.shards}")
    elif summary.has_labels and summary.has_splits:
        print(f"next: python -m data_shards.convert {arguments.out / TABLE} --out SHARDS")
    else:
        print("to train on them, give the table the columns split, and label or class")


def _options(arguments: argparse.Namespace) -> Options | None:
    """How the table is converted; None where it is not."""
    if arguments.shards is None:
        for name in ("dataset", "labels", "tokenizer"):
            if getattr(arguments, name) is not None:
                raise Refused(f"--{name} has no effect without --shards DIR; leave it out")
        return None
    check_folder(arguments.shards)
    labels = None if arguments.labels is None else parse_labels(arguments.labels)
    return Options(dataset=arguments.dataset, labels=labels, tokenizer=arguments.tokenizer)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    arguments = _arguments(argv)
    again = f"run the same command again: finished clips are kept in {arguments.out}"
    return run(lambda: _main(arguments), when_stopped=again)


if __name__ == "__main__":
    sys.exit(main())
