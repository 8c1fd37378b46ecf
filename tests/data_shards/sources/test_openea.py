"""OpenEA's layout of two graphs: names become ids, folds of links become splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.convert import convert
from data_shards.graph import load_graphs
from data_shards.shards.manifest import DataError, Manifest
from data_shards.sources.raw_dataset import Options

SIZE = 10  # entities of each graph
LEFT, RIGHT = "http://left/", "Q"


def written(folder: Path) -> Path:
    """Two rings of entities, with a relation of their own and one in common."""
    raw = folder / "EN_FR_15K_V1"
    fold = raw / "721_5fold" / "2"
    fold.mkdir(parents=True)
    links = [f"{LEFT}{number}\t{RIGHT}{number}\n" for number in range(SIZE)]
    (raw / "ent_links").write_text("".join(links))
    for digit, name in (("1", LEFT), ("2", RIGHT)):
        triples = []
        for number in range(SIZE - 1):  # the last entity has no triple
            relation = "both" if number % 2 else f"own{digit}"
            triples.append(f"{name}{number}\t{relation}\t{name}{(number + 1) % (SIZE - 1)}\n")
        (raw / f"rel_triples_{digit}").write_text("".join(triples))
        attributes = [
            f"{name}0\tbirth\t1952\n",
            f"{name}0\tname\tan\tother tab\n",
            "nobody\tx\t1\n",
        ]
        (raw / f"attr_triples_{digit}").write_text("".join(attributes))
    for split, part in (("train", links[:2]), ("valid", links[2:3]), ("test", links[3:])):
        (fold / f"{split}_links").write_text("".join(part))
    return raw


def converted(raw: Path, fold: int | None = 2) -> Manifest:
    return convert(raw, raw.parent / "shards", Options(fold=fold))


def test_names_become_entities_with_triples_links_and_attributes(tmp_path: Path) -> None:
    raw = written(tmp_path)
    manifest = converted(raw)
    assert manifest.extras["links"] == {"train": 2, "valid": 1, "test": 7}
    assert manifest.extras["sides"] == [SIZE, SIZE]
    assert manifest.extras["views"]["attribute"] == 2
    assert manifest.source["fold"] == 2
    graphs = load_graphs(tmp_path / "shards")
    names = [str(record["name"]) for record in graphs.entities.records(np.arange(2 * SIZE))]
    for split, expected in (("train", {0, 1}), ("valid", {2}), ("test", set(range(3, SIZE)))):
        found = set()
        for left, right in graphs.links[split].tolist():
            number = names[left].removeprefix(LEFT)
            assert names[right] == f"{RIGHT}{number}"
            found.add(int(number))
        assert found == expected
    edges = {(names[row], names[column]) for row, column in graphs.edges.T.tolist()}
    assert (f"{LEFT}0", f"{LEFT}1") in edges
    assert (f"{LEFT}1", f"{LEFT}0") in edges
    assert all(row[0] == column[0] for row, column in edges)
    own = [row for row, name in enumerate(names) if name == f"{RIGHT}{SIZE - 1}"]
    assert not graphs.views["relation"][own].any()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("721_5fold/2/train_links", f"{LEFT}3\t{RIGHT}3", r"test_links, line 1: this link is in"),
        ("721_5fold/2/valid_links", f"{LEFT}3\t{RIGHT}4", r"valid_links, line 2: this link is not"),
        ("721_5fold/2/valid_links", f"{LEFT}3\tZ", "'Z' is no entity of graph 2"),
        ("rel_triples_1", "only one cell", "1 columns instead of 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_line(
    file: str, line: str, message: str, tmp_path: Path
) -> None:
    raw = written(tmp_path)
    with open(raw / file, "a") as opened:
        opened.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        converted(raw)


def test_folds_are_named(tmp_path: Path) -> None:
    raw = written(tmp_path)
    with pytest.raises(DataError, match="--fold names one of 2 in"):
        converted(raw, fold=None)
    (raw / "rel_triples_2").unlink()
    with pytest.raises(DataError, match="rel_triples_2 is missing"):
        converted(raw)
