"""MCLEA (Lin et al., COLING 2022), with about as many optimiser steps as the released code takes.

There one step serves all batches of 512 links of an epoch, for 1000 epochs; here every batch of 512
has its own step, for an eighth of the epochs. Validation is a tenth of the training links, carved
out by the conversion; the paper has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from core.models.mclea import MCLEA
from launch.config import Group, Optim, Run
from launch.tasks.alignment_options import AlignmentOptions


def dbp15k_zh_en() -> Run:
    """MCLEA on DBP15K zh-en, 30 % of the links, no iterative learning.

    deepspeed launch/train.py mclea/dbp15k_zh_en data=shards/zh_en
    Structure alone: options.views=graph; with relations: options.views=graph,relation
    """
    return Run(
        model="mclea",
        options=MCLEA.Config(),
        optim=Optim(groups={"main": Group(lr=5e-4, weight_decay=0.01)}),
        batch_size=512,
        epochs=120,
        patience=20,
        seed=42,
        metrics="alignment",
        select="all/MRR",
        goal="max",
        task_options=asdict(AlignmentOptions()),
    )


def dbp15k_zh_en_iterative() -> Run:
    """MCLEA on DBP15K zh-en, with links that the model proposes in the second half, at a fifth of
    the rate.

    deepspeed launch/train.py mclea/dbp15k_zh_en_iterative data=shards/zh_en
    """
    base = dbp15k_zh_en()
    return replace(
        base,
        optim=replace(base.optim, schedule="step", step_epochs=60, gamma=0.2),
        patience=0,
        task_options=asdict(
            AlignmentOptions(iterate_from=60, propose_every=1, restart_every=10, commit_every=10)
        ),
    )


def dbp15k_zh_en_unsupervised() -> Run:
    """MCLEA on DBP15K zh-en without gold links: the thousand pairs of most similar names take their
    place.

    deepspeed launch/train.py mclea/dbp15k_zh_en_unsupervised data=shards/zh_en
    """
    base = dbp15k_zh_en_iterative()
    return replace(base, task_options=base.task_options | {"seeds": "chars"})


def dbp15k_fr_en() -> Run:
    """MCLEA on DBP15K fr-en, as on zh-en.

    deepspeed launch/train.py mclea/dbp15k_fr_en data=shards/fr_en
    """
    return dbp15k_zh_en()


def srprs_en_fr() -> Run:
    """MCLEA on SRPRS en-fr, which has attributes too.

    deepspeed launch/train.py mclea/srprs_en_fr data=shards/en_fr
    """
    return dbp15k_zh_en()


def fb15k_db15k() -> Run:
    """MCLEA on FB15K-DB15K, 20 % of the links (convert with --train-ratio 0.2), with numeric
    literals.

    deepspeed launch/train.py mclea/fb15k_db15k data=shards/fb_db
    """
    return dbp15k_zh_en()


def dbp15k_ja_en() -> Run:
    """MCLEA on DBP15K ja-en, as on zh-en.

    deepspeed launch/train.py mclea/dbp15k_ja_en data=shards/ja_en
    """
    return dbp15k_zh_en()


def srprs_en_de() -> Run:
    """MCLEA on SRPRS en-de, as on en-fr.

    deepspeed launch/train.py mclea/srprs_en_de data=shards/en_de
    """
    return dbp15k_zh_en()


def srprs_dbp_wd() -> Run:
    """MCLEA on SRPRS dbp-wd, as on en-fr.

    deepspeed launch/train.py mclea/srprs_dbp_wd data=shards/dbp_wd
    """
    return dbp15k_zh_en()


def srprs_dbp_yg() -> Run:
    """MCLEA on SRPRS dbp-yg, as on en-fr.

    deepspeed launch/train.py mclea/srprs_dbp_yg data=shards/dbp_yg
    """
    return dbp15k_zh_en()


def openea() -> Run:
    """MCLEA on a pair of graphs of OpenEA, such as EN_FR_15K_V1; attributes are their names.

    deepspeed launch/train.py mclea/openea data=shards/en_fr_15k_v1
    """
    return dbp15k_zh_en()


def own() -> Run:
    """MCLEA on graphs of your own, with the views that they have.

    deepspeed launch/train.py mclea/own data=shards/graphs
    """
    return dbp15k_zh_en()


RECIPES: dict[str, Callable[[], Run]] = {
    "dbp15k_zh_en": dbp15k_zh_en,
    "dbp15k_zh_en_iterative": dbp15k_zh_en_iterative,
    "dbp15k_zh_en_unsupervised": dbp15k_zh_en_unsupervised,
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
