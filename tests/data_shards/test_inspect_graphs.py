"""What ``inspect`` says of two graphs, the leakage it finds, and that training refuses what it
finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_folder import PAIRS, SECOND, write_folder
from shard_folders import alignment_shards

from data_shards.convert import convert
from data_shards.graph import GRAPH, load_graphs
from data_shards.inspect import main
from data_shards.inspecting.graph_contents import examine_graphs
from data_shards.shards.manifest import DataError, Field, Manifest, Sample, read_manifest
from data_shards.shards.writer import write_shard

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], None]


def with_graph(folder: Path, change: Change) -> Path:
    """The shards with another graph record, as a conversion without checks would have made it."""
    contents = examine_graphs(folder)
    arrays = {"triples": contents.triples.copy()}
    for split, links in contents.links.items():
        arrays[f"links_{split}"] = links.copy()
    change(arrays)
    arrays = {name: rows.astype("<i4") for name, rows in arrays.items()}
    shard = write_shard(folder, "graph-000000.tar", [("graph_00000000", Sample("graph", arrays))])
    manifest = read_manifest(folder)
    splits = {**manifest.splits, "graph": (shard,)}
    (folder / "manifest.json").write_text(replace(manifest, splits=splits).to_json())
    return folder


def also_tested(arrays: Arrays) -> None:
    arrays["links_test"] = np.concatenate([arrays["links_test"], arrays["links_train"][2:4]])


def also_tested_swapped(arrays: Arrays) -> None:
    swapped = arrays["links_train"][:1, ::-1]
    arrays["links_valid"] = np.concatenate([arrays["links_valid"], swapped])


def listed_twice(arrays: Arrays) -> None:
    arrays["links_train"] = np.concatenate([arrays["links_train"], arrays["links_train"][:1]])


def shares_an_entity(arrays: Arrays) -> None:
    arrays["links_test"][0, 1] = arrays["links_train"][0, 1]


def shares_an_entity_in_its_split(arrays: Arrays) -> None:
    arrays["links_test"][0, 1] = arrays["links_test"][1, 1]


def stays_on_one_side(arrays: Arrays) -> None:
    arrays["links_valid"][0, 1] = arrays["links_valid"][0, 0]


def names_no_entity(arrays: Arrays) -> None:
    arrays["links_train"][3, 1] = 2 * PAIRS


def crosses(arrays: Arrays) -> None:
    arrays["triples"][5, [0, 2]] = arrays["links_train"][0]


def counts_from_below(arrays: Arrays) -> None:
    arrays["triples"][4, 1] = -1


def test_it_speaks_of_entities_relations_links_and_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(alignment_shards(tmp_path))]) == 0
    report = capsys.readouterr().out
    rows = [line.split() for line in report.splitlines()]
    sizes = [len((tmp_path / "raw" / f"triples_{side}").read_text().split("\n")) for side in "12"]
    with_image = str(PAIRS - PAIRS // 3 - 1)
    assert ["left", "40", "6", str(sizes[0]), "40", with_image] in rows
    assert ["right", "40", "6", str(sizes[1]), "40", with_image] in rows
    assert ["train", "18", "45.0%"] in rows
    assert ["valid", "2", "5.0%"] in rows
    assert ["test", "20", "50.0%"] in rows
    assert ["attribute", "int8", "13", "left", "32", "8"] in rows
    assert ["image", "float32", "12", "right", with_image, str(PAIRS - int(with_image))] in rows
    assert "leakage: none; no link is in two splits, and no entity in two links" in report
    assert "checksums: 4 of 4 shards are as the manifest says" in report
    assert "train on it with" in report
    for word in ("scores", "videos", "transcripts", "text:", "labels"):
        assert word not in report


@pytest.mark.parametrize(
    ("change", "found", "unfit"),
    [
        (also_tested, "LEAKAGE: 2 links are in more than one split: {pair} in", True),
        (also_tested_swapped, "LEAKAGE: 1 links are in more than one split", True),
        (listed_twice, "WARNING: 1 links are in their split twice", True),
        (
            shares_an_entity,
            "1 of them in links of different splits: {entity} in train and test",
            False,
        ),
        (shares_an_entity_in_its_split, "1 entities are in more than one link, 0 of them", False),
        (stays_on_one_side, "UNFIT: {folder}/graph-000000.tar, links_valid, row 0: entity", True),
        (names_no_entity, "UNFIT: {folder}/graph-000000.tar, links_train, row 3: entity 80", True),
        (crosses, "UNFIT: {folder}/graph-000000.tar, triples, row 5: entity", True),
        (counts_from_below, "UNFIT: {folder}/graph-000000.tar, triples, row 4: relation -1", True),
    ],
)
def test_what_splits_share_is_found_and_what_is_unfit_is_not_trained_on(
    tmp_path: Path, change: Change, found: str, unfit: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = alignment_shards(tmp_path)
    before = examine_graphs(folder)
    entity = before.ids[before.links["train"][0, 1]]
    pair = " = ".join(before.ids[entity] for entity in sorted(before.links["train"][2]))
    with_graph(folder, change)
    code = main([str(folder)])
    captured = capsys.readouterr()
    assert found.format(folder=folder, entity=entity, pair=pair) in captured.out
    if unfit:
        assert code == 2
        assert "findings (UNFIT) that training refuses" in captured.err
        with pytest.raises(DataError, match=r"graph-000000\.tar, .*; convert the data again"):
            load_graphs(folder)
    else:
        assert code == 0
        load_graphs(folder)


def test_damaged_shards_are_named_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = alignment_shards(tmp_path)
    path = folder / "entities-000001.tar"
    body = bytearray(path.read_bytes())
    body[5000] ^= 1
    path.write_bytes(body)
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert "checksums: 3 of 4" in captured.out
    assert "DAMAGED: " in captured.out
    assert "UNFIT" not in captured.out  # what cannot be known is not accused
    last_line = captured.err.splitlines()[-1]
    assert last_line.startswith(f"error: {folder} has damaged shards: ")


@pytest.mark.parametrize(
    ("name", "described", "message"),
    [
        ("chars", Field("int8", (0,)), r"view 'chars' has shape \(0,\); a view is a vector"),
        ("chars", Field("int8", (None, 3)), r"view 'chars' has shape \(None, 3\)"),
        ("chars", Field("int8", (10**9,)), r"view 'chars' has 1000000000 numbers a row, more than"),
        ("triples", Field("int32", (None, 2)), r"field 'triples' is .*; expected .*3"),
        ("side", Field("int64", ()), r"field 'side' is .*int64.*; expected .*int8"),
    ],
)
def test_a_manifest_of_other_fields_is_refused_at_every_door(
    tmp_path: Path,
    name: str,
    described: Field,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = alignment_shards(tmp_path)
    manifest = read_manifest(folder)
    fields = {**manifest.fields, name: described}
    (folder / "manifest.json").write_text(replace(manifest, fields=fields).to_json())
    path = folder / "manifest.json"
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        load_graphs(folder)
    assert main([str(folder)]) == 2
    assert f"{path}: " in capsys.readouterr().err


def several_records(manifest: Manifest) -> Manifest:
    (shard,) = manifest.splits["graph"]
    return replace(manifest, splits={**manifest.splits, "graph": (replace(shard, samples=24),)})


def without_entities(manifest: Manifest) -> Manifest:
    return replace(manifest, splits={"graph": manifest.splits["graph"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (several_records, "holds 80 entities, 24 graph; expected entities, and 1 graph"),
        (without_entities, "has no split 'entities'; it has graph"),
    ],
)
def test_a_manifest_of_other_splits_is_refused_by_its_name(
    tmp_path: Path, change: Callable[[Manifest], Manifest], message: str
) -> None:
    folder = alignment_shards(tmp_path)
    path = folder / "manifest.json"
    path.write_text(change(read_manifest(folder)).to_json())
    with pytest.raises(DataError) as refused:
        load_graphs(folder)
    assert str(refused.value).startswith(f"{path} {message}")


def test_a_view_that_is_not_finite_is_named_with_its_entity(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    samples = []
    for number in range(5):
        row = np.full(3, 1.0 if number != 3 else np.inf, "<f4")
        arrays = {"side": np.int8(number % 2), "image": row}
        samples.append((f"entities_{number}", Sample(str(number), arrays)))
    shards = [
        write_shard(folder, "entities-000000.tar", samples[:2]),
        write_shard(folder, "entities-000001.tar", samples[2:]),
    ]
    rows = {"triples": np.array([[0, 0, 2]], "<i4")}
    for split in ("train", "valid", "test"):
        rows[f"links_{split}"] = np.zeros((0, 2), "<i4")
    graph = write_shard(folder, "graph-000000.tar", [("graph_0", Sample("graph", rows))])
    fields = {**GRAPH, "image": Field("float32", (3,))}
    splits = {"entities": tuple(shards), "graph": (graph,)}
    manifest = Manifest(name="made", task="alignment", fields=fields, splits=splits)
    (folder / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(
        DataError, match=r"1\.tar, sample 'entities_3': the view 'image' is not fin"
    ):
        load_graphs(folder)


def test_notes_of_the_conversion_are_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw", views=False)
    with (raw / "ill_ent_ids").open("a") as file:
        file.write(f"\n3\t{SECOND + 5}")
    convert(raw, tmp_path / "shards")
    assert main([str(tmp_path / "shards")]) == 0
    assert "noted: 2 entities are in more than one link" in capsys.readouterr().out
