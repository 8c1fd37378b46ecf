"""Index WebDataset tars that something else wrote: ``python -m data_shards.index DIR``.

Every tar of the folder gets an index beside it, and the folder a manifest; the tars are not
touched. A member ``<key>.<field>.npy`` is the array ``field``, ``<key>.json`` and ``<key>.txt`` are
the sample's record and transcript, any other member is the bytes of its file as uint8. In a folder
that has a manifest, missing and damaged indexes are made again, and must come out as the manifest
knows them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_shards.command import run
from data_shards.shards.folder_indexer import index_folder, restore_indexes
from data_shards.shards.manifest import MANIFEST


def _main(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if (folder / MANIFEST).exists():
        restored = restore_indexes(folder)
        outcome = f"made again: {', '.join(restored)}" if restored else "all indexes are whole"
        print(f"{folder} has a manifest; {outcome}")
        return
    manifest = index_folder(
        folder,
        split=options.split,
        task=options.task,
        leave_out=options.leave_out,
        processes=options.processes,
    )
    counts = ", ".join(f"{manifest.samples(name)} {name}" for name in manifest.splits)
    print(f"indexed {counts} samples with fields {', '.join(manifest.fields)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_shards.index", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--split", help="the split that all tars belong to (default: the start of each name)"
    )
    parser.add_argument("--task", choices=["sentiment", "alignment"], default="sentiment")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="FIELD", help="do not index this field"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    return run(lambda: _main(options))


if __name__ == "__main__":
    sys.exit(main())
