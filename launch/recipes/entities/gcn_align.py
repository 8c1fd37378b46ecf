"""GCN-Align (Wang et al., EMNLP 2018), optimised as the other models of entities are."""

from __future__ import annotations

from collections.abc import Callable

from core.models.entities.gcn_align import GCNAlign
from launch.config import Run
from launch.recipes.entities import alignment_run


def dbp15k_zh_en() -> Run:
    """GCN-Align on DBP15K zh-en, 30 % of the links.

    deepspeed launch/train.py gcn_align/dbp15k_zh_en data=shards/zh_en
    """
    return alignment_run("gcn_align", GCNAlign.Config(), 5e-3)


def dbp15k_fr_en() -> Run:
    """GCN-Align on DBP15K fr-en, as on zh-en.

    deepspeed launch/train.py gcn_align/dbp15k_fr_en data=shards/fr_en
    """
    return dbp15k_zh_en()


def srprs_en_fr() -> Run:
    """GCN-Align on SRPRS en-fr, which has attributes too.

    deepspeed launch/train.py gcn_align/srprs_en_fr data=shards/en_fr
    """
    return dbp15k_zh_en()


def fb15k_db15k() -> Run:
    """GCN-Align on FB15K-DB15K, 20 % of the links (convert with --train-ratio 0.2).

    deepspeed launch/train.py gcn_align/fb15k_db15k data=shards/fb_db
    """
    return dbp15k_zh_en()


def dbp15k_ja_en() -> Run:
    """GCN-Align on DBP15K ja-en, as on zh-en.

    deepspeed launch/train.py gcn_align/dbp15k_ja_en data=shards/ja_en
    """
    return dbp15k_zh_en()


def srprs_en_de() -> Run:
    """GCN-Align on SRPRS en-de, as on en-fr.

    deepspeed launch/train.py gcn_align/srprs_en_de data=shards/en_de
    """
    return dbp15k_zh_en()


def srprs_dbp_wd() -> Run:
    """GCN-Align on SRPRS dbp-wd, as on en-fr.

    deepspeed launch/train.py gcn_align/srprs_dbp_wd data=shards/dbp_wd
    """
    return dbp15k_zh_en()


def srprs_dbp_yg() -> Run:
    """GCN-Align on SRPRS dbp-yg, as on en-fr.

    deepspeed launch/train.py gcn_align/srprs_dbp_yg data=shards/dbp_yg
    """
    return dbp15k_zh_en()


def openea() -> Run:
    """GCN-Align on a pair of graphs of OpenEA, such as EN_FR_15K_V1; attributes are their names.

    deepspeed launch/train.py gcn_align/openea data=shards/en_fr_15k_v1
    """
    return dbp15k_zh_en()


def own() -> Run:
    """GCN-Align on graphs of your own, with the views that they have.

    deepspeed launch/train.py gcn_align/own data=shards/graphs
    """
    return dbp15k_zh_en()


RECIPES: dict[str, Callable[[], Run]] = {
    "dbp15k_zh_en": dbp15k_zh_en,
    "dbp15k_fr_en": dbp15k_fr_en,
    "srprs_en_fr": srprs_en_fr,
    "fb15k_db15k": fb15k_db15k,
    "dbp15k_ja_en": dbp15k_ja_en,
    "srprs_en_de": srprs_en_de,
    "srprs_dbp_wd": srprs_dbp_wd,
    "srprs_dbp_yg": srprs_dbp_yg,
    "openea": openea,
    "own": own,
}
