"""Codebooks of frames for CENet: ``python -m data_shards.codebook DIR``. One k-means per modality.

The centres are found on train frames alone, each feature scaled by its mean and deviation over
train frames (the manifest's moments). They are saved as ``codebook.npz`` in the shard folder, and
the manifest vouches for it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import run
from core.file_access.regular_files import read_regular_file
from core.file_access.targets import check_file
from core.files import sha256_of_bytes, write_atomically
from core.names import suggest, unknown_names
from data_shards.array_files import npz_keys, read_npz
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_store
from data_shards.shards.manifest import (
    MANIFEST,
    DataError,
    Manifest,
    read_manifest,
    write_manifest,
)

CODEBOOK = "codebook.npz"
CLUSTERS = 16
MOST_FRAMES = 200_000  # a random part of more is enough for a few centres, and bounds memory


def train_frames(folder: Path, manifest: Manifest, modality: str) -> Iterator[np.ndarray]:
    """The train frames (T, D) of each sample that has this modality, in file order."""
    shards = manifest.splits["train"]
    reader = Reader(open_store(folder), shards, manifest.fields, keep=1, threads=0)
    for number, shard in enumerate(shards):
        for arrays in reader.iter_views(number, range(shard.samples)):
            if modality in arrays:
                yield arrays[modality]
    reader.close()


def scale(frames: np.ndarray, manifest: Manifest, modality: str) -> np.ndarray:
    """Frames (T, D) with mean 0 and deviation 1 over train frames; constant features become 0."""
    mean, std = map(np.array, manifest.moments[modality])
    divisor = np.where(std > 0, std, 1.0)
    return ((frames - mean) / divisor).astype(np.float32)


def cluster(
    folder: Path, manifest: Manifest, modality: str, clusters: int, seed: int
) -> np.ndarray:
    """Centres (K, D) float32 of scaled train frames; the same for the same data and seed.

    Raises:
        DataError: fewer distinct frames than centres.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    total = 0
    for frames in train_frames(folder, manifest, modality):
        total += len(frames)
    rng = np.random.default_rng([seed, total])
    chosen = np.sort(rng.choice(total, min(total, MOST_FRAMES), replace=False))
    picked = []
    start = 0  # number of the first frame of this sample, counted over all samples
    for frames in train_frames(folder, manifest, modality):
        end = start + len(frames)
        first, last = np.searchsorted(chosen, [start, end])
        here = chosen[first:last] - start
        picked.append(scale(frames[here], manifest, modality))
        start = end
    sample = np.concatenate(picked)
    distinct = len(np.unique(sample, axis=0))
    if distinct < clusters:
        raise DataError(
            f"{folder}: {modality} has {distinct} distinct train frames, "
            f"too few for {clusters} clusters"
        )
    with threadpool_limits(1):  # the order of a sum must not depend on the machine
        means = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096).fit(sample)
    return means.cluster_centers_.astype(np.float32)


def write(
    folder: Path, clusters: int = CLUSTERS, seed: int = 0, modalities: list[str] | None = None
) -> list[str]:
    """Make ``codebook.npz``, by default for all modalities but text; gives the modalities."""
    manifest = read_manifest(folder)
    check_file(folder / CODEBOOK)
    if clusters < 2:
        raise DataError(f"--clusters {clusters}: at least 2 are needed")
    if "train" not in manifest.splits:
        raise DataError(
            f"{folder} has no train split, and codebooks are made from train frames alone"
        )
    known = [name for name in manifest.moments if name != "text"]
    for name in unknown_names(modalities or (), known):
        raise DataError(
            f"{folder} has no frames called {name!r}; it has {', '.join(known) or 'none'}"
            f"{suggest(name, known)}"
        )
    chosen = modalities or known
    if not chosen:
        raise DataError(f"{folder} has no frames to make codebooks of")
    centres = {}
    for name in tqdm(chosen, desc="k-means", unit="modality"):
        centres[name] = cluster(folder, manifest, name, clusters, seed)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **centres)
    facts = {
        CODEBOOK: sha256_of_bytes(buffer.getvalue()),
        "codebook": {"clusters": clusters, "seed": seed, "modalities": chosen},
    }
    write_atomically(folder / CODEBOOK, buffer.getvalue())
    vouching = replace(manifest, extras=manifest.extras | facts)
    write_manifest(folder, vouching, vouching.to_json())
    return chosen


def load_codebooks(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Modality -> centres (K, D) float32 for frames scaled by the manifest's moments; empty when
    none were made.

    Raises:
        DataError: the file is not the one that the manifest vouches for.
    """
    if CODEBOOK not in manifest.extras:
        return {}
    path = folder / CODEBOOK
    again = f"make it again with: python -m data_shards.codebook {folder}"
    try:
        body = read_regular_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {again}") from None
    if sha256_of_bytes(body) != manifest.extras[CODEBOOK]:
        raise DataError(f"{path} is not the file that {MANIFEST} vouches for; {again}")
    # copies: models make tensors of them, which must be writable
    return {name: read_npz(path, name).copy() for name in npz_keys(path)}


def _main(arguments: argparse.Namespace) -> None:
    names = write(arguments.data, arguments.clusters, arguments.seed, arguments.modalities)
    print(
        f"{arguments.clusters} centres each for {', '.join(names)} "
        f"are in {arguments.data / CODEBOOK}; "
        f"use them with: deepspeed launch/train.py cenet/mosi data={arguments.data}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("codebook", __doc__)
    parser.add_argument("data", type=Path, metavar="DIR", help="a shard folder")
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modalities", nargs="+", metavar="NAME", help="default: all but text")
    arguments = parse(parser, argv)
    return run(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
