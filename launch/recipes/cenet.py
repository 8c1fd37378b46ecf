"""CENet (Wang et al., IEEE TMM 2022) with external memory; the codebooks are made beforehand with

python -m data_shards.codebook DIR

From MMSA are the text encoder's rate, the decay, epsilon, clipping, batch size and absolute error.
Not from MMSA: what is outside of the text encoder learns ten times as fast; each representation
reads from a memory; frames are standardised, and become codes, as in the authors' code, instead of
going through two layers; padded frames take no part; the embedding tables are trained. MMSA's CENet
itself, with the rate that the recipe has for the text:

deepspeed launch/train.py cenet/mosi data=DIR options.memory=[] options.front=mlp
options.frame_mask=false options.freeze_embeddings=true options.inputs.standardise=false
optim.groups.main.lr=1e-5
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cenet import CENet
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_depression, hscl


def _optim(rate: float, decay: float = 0.0, eps: float = 1e-8, main: float = 10.0) -> Optim:
    """``main``: how much faster than the encoder the attention and the memories learn."""
    groups = {
        "text": Group(rate, decay),
        "text_no_decay": Group(rate, 0.0),
        "main": Group(main * rate, decay),
    }
    return Optim(algorithm="adam", groups=groups, eps=eps, clip=2.0)


def mosi() -> Run:
    """CENet with memory on MOSI, unaligned, text as BERT token ids. Without memory in MMSA: MAE
    .725, Corr .795.

    deepspeed launch/train.py cenet/mosi data=shards/mosi
    """
    return Run(
        model="cenet",
        options=CENet.Config(text=TextConfig(source="bert-base-uncased")),
        optim=_optim(1e-5, 1e-4, 3e-8),
        batch_size=64,
        epochs=100,
        patience=8,
    )


def mosei() -> Run:
    """CENet with memory on MOSEI. Without memory in MMSA: MAE .526, Corr .778.

    deepspeed launch/train.py cenet/mosei data=shards/mosei
    """
    return replace(mosi(), optim=_optim(1e-5, 1e-4, 1e-8))


def sims() -> Run:
    """CENet with memory on CH-SIMS. Without memory in MMSA, on features that are not standardised:
    MAE .471, Corr .540.

    deepspeed launch/train.py cenet/sims data=shards/sims
    """
    base = mosi()
    return replace(
        base,
        options=replace(base.options, text=TextConfig(source="bert-base-chinese")),
        optim=_optim(2e-6, 0.0, 2e-8),
        batch_size=32,
        metrics="sims",
    )


def simsv2() -> Run:
    """CENet with memory on CH-SIMS v2. Without memory in MMSA: MAE .310, Corr .699.

    deepspeed launch/train.py cenet/simsv2 data=shards/simsv2
    """
    return replace(sims(), optim=_optim(3e-5, 0.0, 3e-8), batch_size=64)


def avec2019() -> Run:
    """CENet with memory on the depression scores of AVEC 2019 (PHQ-8 in [0, 24]) from MFCC, AU
    poses and text.

    The data are licensed: bring them as a table (docs/data.md) with --labels 0:24:1. No published
    settings exist; these are MOSI's.

    deepspeed launch/train.py cenet/avec2019 data=shards/avec2019
    """
    return for_depression(mosi())


def mosi_utterance() -> Run:
    """CENet with memory on MOSI with utterance-level sound and video; rates are those of HSCL's
    recipe.

    deepspeed launch/train.py cenet/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    groups = {
        "text": Group(5e-5, 0.01),
        "text_no_decay": Group(5e-5, 0.0),
        "main": Group(1e-4, 0.01),
    }
    options = CENet.Config(text=TextConfig(source="bert-base-uncased"))
    return replace(base, model="cenet", options=options, optim=replace(base.optim, groups=groups))


def _printed(base: Run) -> Run:
    """The run with the memory exactly as it is printed: what is read takes the representation's
    place."""
    return replace(base, options=replace(base.options, memory_mode="replace"))


def mosi_printed() -> Run:
    """CENet on MOSI with the memory exactly as printed: no residual, no gate, no norm before the
    query.

    deepspeed launch/train.py cenet/mosi_printed data=shards/mosi
    """
    return _printed(mosi())


def demo_printed() -> Run:
    """CENet on the generated data with the memory exactly as printed; needs the codebook as
    ``demo`` does.

    deepspeed launch/train.py cenet/demo_printed data=demo/shards
    """
    return _printed(demo())


def demo() -> Run:
    """CENet with memory on the generated data; needs ``python -m data_shards.codebook demo/shards``
    before.

    deepspeed launch/train.py cenet/demo data=demo/shards
    """
    options = CENet.Config(text=TextConfig(source="small"), scale=0.0, slots=16)
    return demo_run("cenet", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "avec2019": avec2019,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
    "mosi_printed": mosi_printed,
    "demo_printed": demo_printed,
}
