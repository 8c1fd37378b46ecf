"""Codebooks of frames for CENet: ``python -m data_shards.codebook DIR``. One k-means per modality.

The centres are found on train frames alone, each feature scaled by its mean and deviation over train frames (the
manifest's moments). They are saved as ``codebook.npz`` in the shard folder, and the manifest vouches for it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import run
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_store
from data_shards.shards.manifest import MANIFEST, DataError, Manifest, read_manifest
from data_shards.shards.writer import staged

CODEBOOK = "codebook.npz"
CLUSTERS = 16
MOST_FRAMES = 200_000  # a random part of more is enough for a few centres, and bounds memory


def train_frames(folder: Path, manifest: Manifest, modality: str) -> Iterator[np.ndarray]:
    """The train frames (T, D) of each sample that has this modality, in file order."""
    shards = manifest.splits["train"]
    reader = Reader(open_store(folder), shards, manifest.fields, keep=1, threads=0)
    for number, shard in enumerate(shards):
        for arrays in reader.walk(number, range(shard.samples)):
            if modality in arrays:
                yield arrays[modality]
    reader.close()


def scale(frames: np.ndarray, manifest: Manifest, modality: str) -> np.ndarray:
    """Frames (T, D) float32 with mean 0 and deviation 1 over train frames; constant features become 0."""
    mean, std = (np.array(part) for part in manifest.moments[modality])
    return ((frames - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)


def cluster(
    folder: Path, manifest: Manifest, modality: str, clusters: int, seed: int
) -> np.ndarray:
    """Centres (K, D) float32 of scaled train frames; the same for the same data and seed.

    Raises:
        DataError: fewer distinct frames than centres.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    total = sum(len(frames) for frames in train_frames(folder, manifest, modality))
    rng = np.random.default_rng([seed, total])
    chosen = np.sort(rng.choice(total, min(total, MOST_FRAMES), replace=False))
    picked, start = [], 0
    for frames in train_frames(folder, manifest, modality):
        first, last = np.searchsorted(chosen, [start, start + len(frames)])
        picked.append(scale(frames[chosen[first:last] - start], manifest, modality))
        start += len(frames)
    sample = np.concatenate(picked)
    distinct = len(np.unique(sample, axis=0))
    if distinct < clusters:
        raise DataError(
            f"{folder}: {modality} has {distinct} distinct train frames, too few for {clusters} clusters"
        )
    with threadpool_limits(1):  # the order of a sum must not depend on the machine
        means = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096).fit(sample)
    return means.cluster_centers_.astype(np.float32)


def write(
    folder: Path, clusters: int = CLUSTERS, seed: int = 0, modalities: list[str] | None = None
) -> list[str]:
    """Make ``codebook.npz``, for all modalities of frames but text by default; gives the modalities."""
    manifest = read_manifest(folder)
    if clusters < 2:
        raise DataError(f"--clusters {clusters}: at least 2 are needed")
    if "train" not in manifest.splits:
        raise DataError(
            f"{folder} has no train split, and codebooks are made from train frames alone"
        )
    known = [name for name in manifest.moments if name != "text"]
    for name in modalities or ():
        if name not in known:
            raise DataError(
                f"{folder} has no frames called {name!r}; it has {', '.join(known) or 'none'}"
            )
    names = modalities or known
    if not names:
        raise DataError(f"{folder} has no frames to make codebooks of")
    with tqdm(names, desc="k-means", unit="modality") as bar:
        centres = {name: cluster(folder, manifest, name, clusters, seed) for name in bar}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **centres)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    with staged(folder / CODEBOOK) as file:
        file.write(buffer.getvalue())
    facts = {
        CODEBOOK: digest,
        "codebook": {"clusters": clusters, "seed": seed, "modalities": names},
    }
    with staged(folder / MANIFEST) as file:
        file.write(replace(manifest, extras=manifest.extras | facts).to_json().encode("utf-8"))
    return names


def load_codebooks(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Modality -> centres (K, D) float32 for frames scaled by the manifest's moments; empty when none were made.

    Raises:
        DataError: the file is not the one that the manifest vouches for.
    """
    if CODEBOOK not in manifest.extras:
        return {}
    path, again = folder / CODEBOOK, f"make it again with: python -m data_shards.codebook {folder}"
    if not path.is_file():
        raise DataError(f"{path} is missing; {again}")
    body = path.read_bytes()
    if hashlib.sha256(body).hexdigest() != manifest.extras[CODEBOOK]:
        raise DataError(f"{path} is not the file that {MANIFEST} vouches for; {again}")
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _main(given: argparse.Namespace) -> None:
    names = write(given.data, given.clusters, given.seed, given.modalities)
    print(
        f"{given.clusters} centres each for {', '.join(names)} are in {given.data / CODEBOOK}; "
        f"use them with: deepspeed launch/train.py cenet/mosi data={given.data}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("codebook", __doc__)
    parser.add_argument("data", type=Path, metavar="DIR", help="a shard folder")
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modalities", nargs="+", metavar="NAME", help="default: all but text")
    given = parse(parser, argv)
    return run(lambda: _main(given))


if __name__ == "__main__":
    sys.exit(main())
