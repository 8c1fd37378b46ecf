"""The links of an alignment folder: which files hold them, that these agree, and who gets which.

``ill_ent_ids`` or ``ref_ent_ids`` lists links, ``sup_ent_ids`` those for training: a part of the
others, as in SRPRS, or apart from them, as where ``ref_ent_ids`` is for testing alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.graph_rules import Listing, check_links, in_several_links
from data_shards.shards.manifest import DataError
from data_shards.sources.graph_files import EntityTable, read_ids

ALL, REFERENCE, TRAINING = "ill_ent_ids", "ref_ent_ids", "sup_ent_ids"
Link = tuple[int, int]


@dataclass(frozen=True)
class FolderLinks:
    """All links of a folder by id, in the order of the files."""

    path: Path  # the file that most of them are from
    everything: list[Link]
    training: list[Link] | None  # as the folder says; None: it does not say


def read_links(raw: Path, table: EntityTable, noted: list[str]) -> FolderLinks:
    """The links of all files there are, which must agree."""
    listings = {}
    for name in (ALL, REFERENCE, TRAINING):
        if os.path.lexists(raw / name):
            listings[name] = read_ids(raw / name, 2)
            check_links(listings[name], table.known)
    main = listings.get(ALL) or listings.get(REFERENCE)
    if main is None:
        raise DataError(
            f"{raw} has neither ill_ent_ids nor ref_ent_ids, so no links to learn from or to test "
            "on"
        )
    everything = _links_of(main)
    training = None
    if TRAINING in listings:
        training = _links_of(listings[TRAINING])
        if _is_apart(listings[TRAINING], main):
            everything = everything + training
        else:
            _refuse_others(listings[TRAINING], main)
    if ALL in listings and REFERENCE in listings:
        _refuse_others(listings[REFERENCE], main)
        _refuse_unassigned(main, listings)
    several = in_several_links(np.array(everything).reshape(-1, 2))
    if len(several):
        noted.append(
            f"{len(several)} entities are in more than one link, such as {several[0]}; kept"
        )
    return FolderLinks(Path(main.source), everything, training)


def seeded_splits(
    links: FolderLinks, *, as_given: bool, train_ratio: float, valid_ratio: float, seed: int
) -> dict[str, np.ndarray]:
    """Split -> (L, 2) links by id; validation is the end of the training links.

    Args:
        as_given: train on the links that the folder says are for training, if it says so.
    """
    for name, ratio in (("train", train_ratio), ("valid", valid_ratio)):
        if not 0 < ratio < 1:
            raise DataError(f"--{name}-ratio must lie between 0 and 1, got {ratio:g}")
    # shuffling the list of links with the old generator repeats the published splits
    random = np.random.RandomState(seed)
    everything = list(links.everything)
    if as_given and links.training is not None:
        train = list(links.training)
        for_training = set(train)
        test = [link for link in everything if link not in for_training]
        random.shuffle(train)
    else:
        random.shuffle(everything)
        num_train = int(len(everything) * train_ratio)
        train, test = everything[:num_train], everything[num_train:]
    num_kept = len(train) - int(len(train) * valid_ratio)
    splits = {"train": train[:num_kept], "valid": train[num_kept:], "test": test}
    if not all(splits.values()):
        counts = ", ".join(f"{len(part)} {split}" for split, part in splits.items())
        raise DataError(
            f"{links.path}: {len(everything)} links make {counts}; change --train-ratio or "
            "--valid-ratio"
        )
    return {split: np.array(part, np.int64) for split, part in splits.items()}


def _links_of(listing: Listing) -> list[Link]:
    return [(left, right) for left, right in listing.rows.tolist()]


def _is_apart(part: Listing, whole: Listing) -> bool:
    """Whether no link of one file is in the other, and no entity either."""
    has_common_link = not set(_links_of(part)).isdisjoint(_links_of(whole))
    return not has_common_link and not np.isin(part.rows, whole.rows).any()


def _refuse_others(part: Listing, whole: Listing) -> None:
    """DataError for a link of ``part`` that is not in ``whole``; the message says what is."""
    known = set(_links_of(whole))
    for row, link in enumerate(_links_of(part)):
        if link in known:
            continue
        message = (
            f"{part.where(row)}: link {link[0]}, {link[1]} is not in {Path(whole.source).name}"
        )
        partners = (whole.rows == np.array(link)).any(1)
        if partners.any():
            other = int(partners.argmax())
            left, right = whole.rows[other].tolist()
            message += f", where line {_line(whole, other)} has {left}, {right}"
        raise DataError(f"{message}; correct the one that is wrong")


def _refuse_unassigned(everything: Listing, listings: dict[str, Listing]) -> None:
    """DataError for a link of ``ill_ent_ids`` that is neither for training nor for reference."""
    assigned = set(_links_of(listings[REFERENCE]))
    if TRAINING in listings:
        assigned |= set(_links_of(listings[TRAINING]))
    for row, link in enumerate(_links_of(everything)):
        if link not in assigned:
            raise DataError(
                f"{everything.where(row)}: link {link[0]}, {link[1]} is in neither {REFERENCE} nor "
                f"{TRAINING}; let them agree, or keep {ALL} alone"
            )


def _line(listing: Listing, row: int) -> int:
    return row if listing.lines is None else int(listing.lines[row])
