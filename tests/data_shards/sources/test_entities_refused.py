"""What an alignment folder must not hold, by file, line and value; and what looks alike and is
read."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_edits import (
    Edit,
    check_refused,
    gold,
    has_line,
    holds,
    lines_of,
    npz,
    read_folder,
    swapped,
    twice,
    unchanged,
    with_reference,
    with_sup,
)
from graph_folder import PAIRS, SECOND, write_folder

from data_shards.convert import convert, main
from data_shards.graph import load_graphs
from data_shards.shards.manifest import DataError


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (has_line("ill_ent_ids", "2\t1002"), r"ill_ent_ids, line 41: link 2, 1002 is in line 3 al"),
        (
            lines_of("ill_ent_ids", twice),
            r"ill_ent_ids, line 41: link 0, 1000 is in line 1 already",
        ),
        (lines_of("ill_ent_ids", swapped), r"line 1: entity 1000 is of the right .* swap the two"),
        (
            has_line("ill_ent_ids", "1003\t3"),
            r"line 41: entity 1003 is of the right .* a link is an",
        ),
        (has_line("ill_ent_ids", "4\t5"), r"line 41: entity 5 is of the left graph"),
        (has_line("ill_ent_ids", "1004\t1005"), r"line 41: entity 1004 is of the right graph"),
        (has_line("ill_ent_ids", "0\t77"), r"ill_ent_ids, line 41: entity 77 is in neither"),
        (has_line("ill_ent_ids", "5000\t1000"), r"ill_ent_ids, line 41: entity 5000 is in neither"),
        (has_line("ill_ent_ids", "0"), r"ill_ent_ids, line 41: 1 columns instead of 2"),
        (holds("ill_ent_ids", "0\t1000"), r"1 links make 0 train, 0 valid, 1 test; change --train"),
        (holds("ill_ent_ids", ""), r"0 links make 0 train, 0 valid, 0 test"),
    ],
)
def test_links_join_a_left_and_a_right_entity_once(
    tmp_path: Path, edit: Edit, message: str
) -> None:
    check_refused(write_folder(tmp_path / "raw", views=False), edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_sup([(right, left) for left, right in gold(0, 12)]), r"sup_ent_ids, line 1: .* swap"),
        (with_sup([*gold(0, 12), (1, 2)]), r"sup_ent_ids, line 13: entity 2 is of the left graph"),
        (with_sup([*gold(0, 12), *gold(3, 4)]), r"sup_ent_ids, line 13: link 3, 1003 is in line 4"),
        (
            with_sup([*gold(0, 12), (13, SECOND + 14)]),
            r"sup_ent_ids, line 13: link 13, 1014 is not in ref_ent_ids, where line 14 has 13, 1013",
        ),
        # apart from ref_ent_ids, but for one entity
        (
            with_sup([*gold(0, 11), (11, SECOND + 12)], gold(12, PAIRS)),
            r"sup_ent_ids, line 1: link 0, 1000 is not in ref_ent_ids; correct",
        ),
        (with_reference(gold(0, 39), None), r"ill_ent_ids, line 40: link 39, 1039 is in neither"),
        (
            with_reference(gold(12, 39), gold(0, 12)),
            r"ill_ent_ids, line 40: link 39, 1039 is in ne",
        ),
        (
            with_reference([*gold(0, 39), (39, SECOND)], None),
            r"ref_ent_ids, line 40: link 39, 1000",
        ),
    ],
)
def test_the_files_of_links_agree(tmp_path: Path, edit: Edit, message: str) -> None:
    check_refused(write_folder(tmp_path / "raw", views=False), edit, message)


@pytest.mark.parametrize("links", ["auto", "seeded"])
@pytest.mark.parametrize(
    "edit",
    [
        with_sup(gold(0, 12)),  # a part of ref_ent_ids, as in SRPRS
        with_sup(gold(0, 12), gold(12, PAIRS)),  # apart from it, which is for testing alone
        with_reference(gold(12, PAIRS), gold(0, 12)),
        with_reference(gold(0, PAIRS), None),
    ],
)
def test_files_of_links_that_agree_give_every_link_once(
    tmp_path: Path, edit: Edit, links: str
) -> None:
    raw = write_folder(tmp_path / "raw", views=False)
    edit(raw)
    dataset = read_folder(raw, links=links)
    assert sum(dataset.extras["links"].values()) == PAIRS
    assert dataset.extras["links"]["test"] == 28


def test_an_entity_in_several_links_is_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw", views=False)
    has_line("ill_ent_ids", f"3\t{SECOND + 5}")(raw)
    assert main([str(raw), "--out", str(tmp_path / "shards")]) == 0
    note = "noted: 2 entities are in more than one link, such as 3; kept"
    assert note in capsys.readouterr().out
    graphs = load_graphs(tmp_path / "shards")
    assert sum(map(len, graphs.links.values())) == PAIRS + 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (has_line("triples_1", "0\t1\t1001"), r"triples_1, line \d+: entity 1001 is of the right"),
        (
            has_line("triples_1", "1000\t1\t1001"),
            r"entity 1000 is of the right .* of the left graph",
        ),
        (
            has_line("triples_2", "3\t1\t1001"),
            r"triples_2, line \d+: entity 3 is of the left graph",
        ),
        (has_line("triples_1", "0\t-1\t1"), r"triples_1, line \d+: '-1' is no id; ids are whole"),
        (
            has_line("triples_1", f"0\t{2**63}\t1"),
            r"triples_1, line \d+: '9223372036854775808' is no",
        ),
        (
            has_line("triples_1", f"{2**64}\t0\t1"),
            r"triples_1, line \d+: '18446744073709551616' is n",
        ),
        (has_line("triples_1", f"0\t{'9' * 5000}\t1"), r"triples_1, line \d+: '9{80}' is no id"),
        (has_line("triples_1", "0\tborn in\t1"), r"triples_1, line \d+: 'born in' is no id"),
        (has_line("triples_1", "0\t1.0\t1"), r"triples_1, line \d+: '1.0' is no id"),
        (has_line("triples_1", "0\t1_0\t1"), r"triples_1, line \d+: '1_0' is no id"),
        (has_line("triples_1", "0\t\u0663\t1"), r"triples_1, line \d+: '\u0663' is no id"),
        (has_line("triples_1", "0\t1\t77"), r"triples_1, line \d+: entity 77 is in neither"),
        (has_line("triples_1", "0\t1"), r"triples_1, line \d+: 2 columns instead of 3"),
        (has_line("triples_1", "0 1 1"), r"1 columns instead of 3, divided by tabs: '0 1 1'"),
        (holds("triples_1", ""), r"triples_1 holds no triples"),
        (holds("triples_2", "\n\n"), r"triples_2 holds no triples"),
    ],
)
def test_triples_are_three_ids_within_one_graph(tmp_path: Path, edit: Edit, message: str) -> None:
    check_refused(write_folder(tmp_path / "raw", views=False), edit, message)


@pytest.mark.parametrize("relation", [500_000_000, 2**40, 10**18 - 1])
def test_relations_are_numbered_anew_whatever_their_ids(tmp_path: Path, relation: int) -> None:
    raw = write_folder(tmp_path / "raw", views=False)
    (raw / "triples_1").write_text(f"0\t{relation}\t1\n1\t7\t2\n2\t{relation}\t3")
    (raw / "triples_2").write_text(f"{SECOND}\t9\t{SECOND + 1}\n{SECOND}\t9\t{SECOND + 1}")
    dataset = read_folder(raw)
    triples = dataset.sample(-1, Counter()).arrays["triples"]
    assert triples[:, 1].tolist() == [2, 0, 2, 1, 1]
    assert dataset.fields["relation"].shape == (3,)
    assert dataset.extras["noted"] == [
        "1 triples repeat another one, and count as often as they are there"
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            has_line("ent_ids_2", "0\thttp://2/e0"),
            r"ent_ids_2, line 41: 0 is the id of 'http://1/e0'",
        ),
        (
            has_line("ent_ids_1", "0\tagain"),
            r"ent_ids_1, line 41: 0 is the id of 'http://1/e0' alr",
        ),
        (has_line("ent_ids_1", "x\tname"), r"ent_ids_1, line 41: 'x' is no id"),
        (
            has_line("ent_ids_1", f"{10**18}\tname"),
            r"ent_ids_1, line 41: '1000000000000000000' is no",
        ),
        (has_line("ent_ids_1", "77"), r"ent_ids_1, line 41: 1 columns instead of 2"),
        (holds("ent_ids_2", ""), r"ent_ids_2 names no entities"),
        (
            holds("ent_ids_1", "0\tM\xfcller".encode("latin-1")),
            r"ent_ids_1 is not UTF-8 .* save it",
        ),
        (holds("ent_ids_1", "0\tname".encode("utf-16")), r"ent_ids_1 is not UTF-8 .* save it"),
        (lambda raw: (raw / "ent_ids_2").unlink(), r"ent_ids_2 is missing"),
        (lambda raw: (raw / "triples_2").unlink(), r"triples_2 is missing"),
        (has_line("has_image_1", "one"), r"has_image_1, line \d+: 'one' is no id"),
        (has_line("has_image_1", "1\t1"), r"has_image_1, line \d+: 2 columns instead of 1"),
        (has_line("has_image_1", "777"), r"has_image_1, line \d+: there is no entity 777"),
        (has_line("has_image_1", "1001"), r"has_image_1, line \d+: entity 1001 is of the right"),
        (has_line("has_image_2", "1001"), r"has_image_2, line \d+: entity 1001 is listed already"),
        (has_line("numeric_1", "5000\ta\t1"), r"numeric_1, line \d+: there is no entity 5000"),
        (has_line("numeric_1", "zero\ta\t1"), r"numeric_1, line \d+: 'zero' is no id"),
        (has_line("numeric_2", "1\ta\t1"), r"numeric_2, line \d+: entity 1 is of the left graph"),
        (
            has_line("training_attrs_1", "http://1/e1\ta\t"),
            r"training_attrs_1, line 33: attribute 2",
        ),
        (has_line("ent_ids_1", "77\thttp://1/e1"), r"training_attrs_1, line 1: .* entities .*77"),
        (
            lambda raw: (raw / "has_image_2").unlink(),
            r"raw has has_image_1 and no has_image_2; add",
        ),
        (lambda raw: (raw / "numeric_1").unlink(), r"raw has numeric_2 and no numeric_1; add it"),
        (lambda raw: (raw / "training_attrs_1").unlink(), r"has training_attrs_2 and no training_"),
    ],
)
def test_every_id_is_known_and_on_its_side(tmp_path: Path, edit: Edit, message: str) -> None:
    check_refused(write_folder(tmp_path / "raw"), edit, message)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('[[0, "abc"]]', r"ent_name.json, entry 1: expected .* a valid array, found 'abc'"),
        ('[[0, ["a"]], [1, ["b"], 3]]', r"ent_name.json, entry 2: expected .* at most 2 items"),
        ('[["0", ["a"]]]', r"ent_name.json, entry 1: expected .* valid integer, found '0'"),
        ("[[0.5, []]]", r"ent_name.json, entry 1: expected"),
        ("[[0, [5]]]", r"ent_name.json, entry 1: expected .* valid string, found 5"),
        ("[[0, null]]", r"ent_name.json, entry 1: expected"),
        ('[[5000, ["a"]]]', r"ent_name.json, entry 1: there is no entity 5000"),
        (
            f'[[{2**70}, ["a"]]]',
            r"ent_name.json, entry 1: there is no entity 1180591620717411303424",
        ),
        ('[[0, ["a"]], [0, ["b"]]]', r"ent_name.json, entry 2: entity 0 is named already"),
        ('{"0": ["a"]}', r"ent_name.json: expected .* valid array"),
        ("[[0, [", r"ent_name.json: expected .*Invalid JSON"),
        ("", r"ent_name.json: expected .*Invalid JSON"),
        ("[" * 5000, r"ent_name.json: expected .*Invalid JSON"),
        (b'[[0, ["\xff"]]]', r"ent_name.json is no text in UTF-8"),
    ],
)
def test_names_are_lists_of_words(tmp_path: Path, names: str | bytes, message: str) -> None:
    edit = holds("translated_ent_name.json", names)
    check_refused(write_folder(tmp_path / "raw"), edit, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"--split-seed must lie between 0 and 2\^32 - 1, got -1"),
        ({"seed": 2**32}, r"--split-seed must lie between 0 and"),
        ({"train_ratio": float("nan")}, r"--train-ratio must lie between 0 and 1, got nan"),
        ({"valid_ratio": 1.0}, r"--valid-ratio must lie between 0 and 1, got 1"),
        ({"images": "nowhere.npz"}, r"nowhere.npz does not exist"),
        ({"images": "ent_ids_1"}, r"ent_ids_1: image vectors come as .pkl, .npz or .npy"),
    ],
)
def test_options_are_refused_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    raw = write_folder(tmp_path / "raw")
    monkeypatch.chdir(raw)
    check_refused(raw, unchanged, message, **options)


@pytest.mark.parametrize(
    ("edit", "left_out"),
    [
        (holds("translated_ent_name.json", json.dumps([[0, ["a"]], [1, ["b", ""]]])), "chars"),
        (holds("translated_ent_name.json", "[]"), "chars"),
        (holds("images.npz", npz(ids=np.zeros(0, int), vectors=np.zeros((0, 4)))), "image"),
        (holds("images.npz", npz(ids=np.arange(2), vectors=np.zeros((2, 4)))), "image"),
    ],
)
def test_a_view_that_no_entity_has_is_left_out_and_the_rest_is_loaded(
    tmp_path: Path, edit: Edit, left_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw")
    edit(raw)
    check_left_out(raw, tmp_path / "shards", left_out, capsys)


@pytest.mark.parametrize(
    ("stem", "left_out", "text"),
    [
        ("training_attrs", "attribute", ""),
        ("training_attrs", "attribute", "http://1/e1"),
        ("numeric", "numeric", ""),
        ("numeric", "numeric", None),  # no number in it
    ],
)
def test_a_pair_of_files_without_contents_is_a_view_left_out(
    tmp_path: Path, stem: str, left_out: str, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw")
    for digit, entity in (("1", 0), ("2", SECOND)):
        (raw / f"{stem}_{digit}").write_text(f"{entity}\tborn\tnever" if text is None else text)
    check_left_out(raw, tmp_path / "shards", left_out, capsys)


def check_left_out(
    raw: Path, shards: Path, left_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = ["relation", "attribute", "image", "chars", "numeric"]
    assert main([str(raw), "--out", str(shards)]) == 0
    said = f"noted: the view '{left_out}' is left out, for no entity has it"
    assert said in capsys.readouterr().out
    assert list(load_graphs(shards).views) == [view for view in everything if view != left_out]


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    before = read_folder(raw)
    for path in raw.iterdir():
        if path.suffix != ".npz":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    after = read_folder(raw)
    assert (after.fields, after.extras) == (before.fields, before.extras)


def test_pipes_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    for name in ("has_image_2", "triples_2", "translated_ent_name.json", "images.npz"):
        raw = write_folder(tmp_path / name)
        (raw / name).unlink()
        os.mkfifo(raw / name)
        with pytest.raises(ValueError, match=rf"{re.escape(name)} is a named pipe"):
            read_folder(raw)


@pytest.mark.parametrize("name", ["ent_ids_1", "ent_ids_2", "triples_1", "triples_2"])
def test_what_every_folder_has_is_named_when_it_is_missing(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw", views=False)
    (raw / name).unlink()
    assert main([str(raw), "--out", str(tmp_path / "shards")]) == 2
    assert f"{name} is missing; an alignment folder needs it" in capsys.readouterr().err


def test_a_refused_folder_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    lines_of("ill_ent_ids", twice)(raw)
    with pytest.raises(DataError, match="line 41"):
        convert(raw, tmp_path / "shards")
    assert not (tmp_path / "shards" / "manifest.json").exists()
