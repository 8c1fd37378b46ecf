"""Alignment folders to shards to graphs: splits, views, presence, and that no number hints at a
pair."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_folder import PAIRS, SECOND, write_folder
from paths import SHARED_DATA

from core.encoders.graph_networks import symmetric_edges
from data_shards.convert import convert, main
from data_shards.graph import load_graphs
from data_shards.shards.manifest import DataError
from data_shards.sources.graphs import entity_views
from data_shards.sources.graphs.knowledge_graphs import EntityOptions, read
from data_shards.sources.raw_dataset import Options

SHARED = SHARED_DATA


def shards(raw: Path, out: Path, **options: object) -> Path:
    convert(raw, out, Options(entities=EntityOptions(**options)), shard_size=32)  # type: ignore[arg-type]
    return out


def test_a_folder_becomes_views_edges_and_links(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    graphs = load_graphs(shards(raw, tmp_path / "shards"))
    assert graphs.num_entities == 2 * PAIRS
    assert list(graphs.views) == ["relation", "attribute", "image", "chars", "numeric"]
    ids = [int(entity) for entity in graphs.ids(torch.arange(2 * PAIRS))]
    place = {entity: i for i, entity in enumerate(ids)}
    assert [int(side) for side in graphs.side] == [int(entity >= SECOND) for entity in ids]
    # every view by its definition
    for i in range(PAIRS):
        assert bool(graphs.present["attribute"][place[i]]) == (i % 5 > 0)
        assert bool(graphs.present["numeric"][place[SECOND + i]]) == (i % 4 > 0)
        assert bool(graphs.present["image"][place[i]]) == (i % 3 > 0)
    for name, rows in graphs.views.items():
        assert not rows[~graphs.present[name]].any()
    norms = graphs.views["image"][graphs.present["image"]].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert graphs.views["attribute"].sum(1)[graphs.present["attribute"]].tolist() == [2] * (
        2 * (PAIRS - PAIRS // 5)
    )
    # edges: both directions of every triple, and a loop
    edges = set(map(tuple, graphs.edges.T.tolist()))
    expected = {(i, i) for i in range(2 * PAIRS)}
    for digit in "12":
        for line in (raw / f"triples_{digit}").read_text().splitlines():
            head, _, tail = map(int, line.split("\t"))
            expected |= {(place[head], place[tail]), (place[tail], place[head])}
    assert edges == expected
    # links: every gold pair once
    pairs = torch.cat(list(graphs.links.values()))
    assert {(ids[a], ids[b]) for a, b in pairs.tolist()} == {(i, SECOND + i) for i in range(PAIRS)}
    assert [len(graphs.links[split]) for split in ("train", "valid", "test")] == [11, 1, 28]


def test_numbers_of_entities_say_nothing_about_pairs(tmp_path: Path) -> None:
    graphs = load_graphs(shards(write_folder(tmp_path / "raw"), tmp_path / "shards"))
    pairs = torch.cat(list(graphs.links.values())).numpy()
    assert abs(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1]) < 0.4
    assert len(set((pairs[:, 1] - pairs[:, 0]).tolist())) > PAIRS // 2
    for name, rows in graphs.views.items():
        assert not any(np.allclose(column, np.arange(len(column))) for column in rows.T.numpy()), (
            name
        )


def test_conversion_gives_the_same_bytes_and_another_seed_other_splits(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    first, again = shards(raw, tmp_path / "a"), shards(raw, tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    other = load_graphs(shards(raw, tmp_path / "c", seed=7))
    ids = {tuple(other.ids(link)) for link in other.links["train"]}
    same = load_graphs(first)
    assert ids != {tuple(same.ids(link)) for link in same.links["train"]}


def test_given_training_links_are_kept_and_the_rest_is_for_testing(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    (raw / "ill_ent_ids").rename(raw / "ref_ent_ids")
    given = [(i, SECOND + i) for i in range(0, 20, 2)]
    (raw / "sup_ent_ids").write_text("\n".join(f"{a}\t{b}" for a, b in given))
    graphs = load_graphs(shards(raw, tmp_path / "shards"))
    train = torch.cat([graphs.links["train"], graphs.links["valid"]])
    assert {tuple(map(int, graphs.ids(link))) for link in train} == set(given)
    assert len(graphs.links["valid"]) == 1
    assert len(graphs.links["test"]) == PAIRS - 10
    seeded = load_graphs(shards(raw, tmp_path / "seeded", links="seeded"))
    assert len(seeded.links["test"]) == 28


def test_a_folder_without_any_view_but_the_graph_is_enough(tmp_path: Path) -> None:
    graphs = load_graphs(shards(write_folder(tmp_path / "raw", views=False), tmp_path / "shards"))
    assert list(graphs.views) == ["relation"]
    assert load_graphs(tmp_path / "shards", ("graph",)).views == {}


@pytest.mark.parametrize("kind", ["pkl", "npy"])
def test_image_files_of_every_kind_give_the_same_view(tmp_path: Path, kind: str) -> None:
    raw = write_folder(tmp_path / "raw")
    expected = load_graphs(shards(raw, tmp_path / "npz"), ("image",))
    with np.load(raw / "images.npz") as file:
        images = dict(zip(file["ids"].tolist(), file["vectors"], strict=True))
    (raw / "images.npz").unlink()
    path = tmp_path / f"images.{kind}"
    if kind == "pkl":
        path.write_bytes(pickle.dumps(images))
    else:
        everyone = [*range(PAIRS), *range(SECOND, SECOND + PAIRS)]
        np.save(
            path,
            np.stack([images.get(entity, np.full(12, np.nan, np.float32)) for entity in everyone]),
        )
    found = load_graphs(shards(raw, tmp_path / kind, images=str(path)), ("image",))
    torch.testing.assert_close(found.views["image"], expected.views["image"])
    assert torch.equal(found.present["image"], expected.present["image"])


class _Foreign:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_of_images_executes_nothing(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    path = raw / "zh_id_img_feature_dict.pkl"  # found by its name, before images.npz
    path.write_bytes(pickle.dumps({0: np.ones(3, np.float32), 1: _Foreign(tmp_path / "called")}))
    with pytest.raises(DataError, match=r"img_feature_dict\.pkl holds a (posix|nt)\.mkdir"):
        shards(raw, tmp_path / "shards")
    assert not (tmp_path / "called").exists()


def test_name_words_are_mean_vectors_of_known_tokens(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("one 1 0\ntwo 0 4\nelse 9 9\n")
    view = entity_views.word_vectors({0: ["One", "two", "zzz"], 1: ["zzz"], 2: []}, 3, path)
    assert view.rows.tolist() == [[0.5, 2.0], [0, 0], [0, 0]]
    assert view.present.tolist() == [True, False, False]
    path.write_text("one 1 0\ntwo 0\n")
    with pytest.raises(DataError, match=r"glove.txt, line 2: 1 numbers for 'two', 2 before"):
        entity_views.word_vectors({0: ["one"]}, 1, path)


def test_name_words_come_from_any_transformers_encoder_too(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "fish"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    names = {0: ["red", "fish"], 1: ["blue"], 2: ["red", "fish"], 3: []}
    view = entity_views.encoded_names(names, 4, str(tmp_path), batch_size=2)
    np.testing.assert_allclose(
        view.rows[0], view.rows[2], atol=1e-6
    )  # whatever else was in its batch
    assert not np.allclose(view.rows[0], view.rows[1])
    assert view.present.tolist() == [True, True, True, False]


def test_relations_are_counted_at_both_ends() -> None:
    triples = np.array([[0, 5, 1], [0, 5, 2], [1, 3, 0], [2, 9, 2]])
    view = entity_views.relation_counts(
        triples, 4, most=2
    )  # 5 twice; 3 and 9 once, the lower id first
    assert view.rows.tolist() == [[2, 1], [1, 1], [1, 0], [0, 0]]
    assert view.present.tolist() == [True, True, True, False]


def test_bigrams_stay_inside_tokens_and_ignore_case() -> None:
    view = entity_views.character_bigrams({0: ["Aba", "b"], 1: ["ab", "AB"], 2: ["x"]}, 3)
    assert view.rows.tolist() == [[1, 1], [2, 0], [0, 0]]  # ab, ba


def test_numbers_close_to_each_other_have_close_waves_whatever_the_sign() -> None:
    literals = {
        0: [1934.12],
        1: [1934.16],
        2: [1935.5],
        3: [-1934.12],
        4: [-122.08, 37.389],
        5: [37.3894, -122.0801],
    }
    rows = entity_views.numeric_waves(literals, 6).rows
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[0, 1] > 0.7 > alike[0, 2]
    assert abs(alike[0, 3]) < 0.3
    assert alike[4, 5] > 0.9


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.5", 12.5),
        ("2000-1-1", 2000.0),
        ("1999-07-01", 1999.5),
        ("-44-03", -44 + 2 / 12),
        ("nan", None),
        ("x", None),
    ],
)
def test_literals_are_numbers_or_dates(text: str, value: float | None) -> None:
    assert entity_views.number_of(text) == (None if value is None else pytest.approx(value))


def test_missing_files_are_named(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    (raw / "ill_ent_ids").unlink()
    with pytest.raises(DataError, match="neither ill_ent_ids nor ref_ent_ids"):
        shards(raw, tmp_path / "shards")


def test_images_that_are_not_finite_or_all_zero_are_left_out_and_counted(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    vectors = np.ones((3, 3), np.float32)
    vectors[1], vectors[2, 0] = 0, np.inf
    np.savez(raw / "images.npz", ids=np.array([0, 1, 2]), vectors=vectors)
    shards(raw, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["repairs"] == {"image vectors not finite or all zero, left out": 2}
    assert manifest["extras"]["views"]["image"] == 1


def test_the_command_line_reaches_every_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_folder(tmp_path / "raw")
    options = [
        "--train-ratio",
        "0.5",
        "--valid-ratio",
        "0.2",
        "--split-seed",
        "3",
        "--shard-size",
        "50",
    ]
    assert main([str(raw), "--out", str(tmp_path / "shards"), *options]) == 0
    assert [len(rows) for rows in load_graphs(tmp_path / "shards").links.values()] == [16, 4, 20]
    assert "80 entities" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("folder", "first", "counts", "links"),
    [
        (
            "dbp15k/zh_en",
            [(22583, 35459), (6475, 16975), (21172, 37127)],
            (38960, 298_096),
            [4050, 450, 10500],
        ),
        ("srprs/en_fr_15k_V1", [(21295, 26086)], (30000, 142_050), [4050, 450, 10500]),
        ("fb15k_db15k", [], (27793, 674_599), [3468, 385, 8993]),
    ],
)
def test_real_data_have_the_published_splits_and_edges(
    folder: str, first: list[tuple[int, int]], counts: tuple[int, int], links: list[int]
) -> None:
    source = read(SHARED / folder, Options(entities=EntityOptions(links="seeded")))
    arrays = source.sample(-1, Counter()).arrays
    names = [
        source.sample(place, Counter()).id
        for place in arrays["links_train"][: len(first)].ravel().tolist()
    ]
    assert list(zip(map(int, names[::2]), map(int, names[1::2]), strict=True)) == first
    triples = torch.from_numpy(arrays["triples"]).long()
    edges = symmetric_edges(triples[:, 0], triples[:, 2], source.counts["entities"])
    assert (source.counts["entities"], edges.shape[1]) == counts
    assert [len(arrays[f"links_{split}"]) for split in ("train", "valid", "test")] == links
    several = ["4 entities are in more than one link, such as 15489; kept"]
    assert source.extras.get("noted", []) == (several if folder == "fb15k_db15k" else [])
