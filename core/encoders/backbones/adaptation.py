"""How much of an encoder that others trained is trained on: all of it, its top layers, small matrices
beside its own (LoRA, DoRA), or nothing.

What is not trained is the base. A checkpoint leaves it out, and names where it came from and the
checksum of its numbers instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import nn

from core.command import Refused
from core.dropout import Probability
from core.names import suggest
from core.sketch import is_sketched

BASE = "frozen_base"  # the attribute of a module with a backbone that has one


@validated_dataclass(frozen=True)
class Adaptation:
    """Which parameters of a pretrained encoder are trained."""

    # none: frozen; top: the uppermost layers and the norm above them; lora (Hu et al.,
    # arXiv:2106.09685), dora (Liu et al., arXiv:2402.09353): matrices beside frozen ones, by peft
    train: Literal["all", "none", "top", "lora", "dora"] = "all"
    top_layers: PositiveInt = 2  # of "top"
    rank: PositiveInt = 8  # these four: of "lora" and "dora"
    adapter_scale: PositiveFloat = 16.0  # over the rank it is the weight of what they add
    adapter_dropout: Probability = 0.0
    # what the names of the linear layers end in that get them; (): all within the layers
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrozenBase:
    """The parameters of a backbone that are not trained."""

    source: str  # a folder or the name of a hub
    sha256: str  # of their names and numbers
    names: frozenset[str]  # within the module that holds the backbone


def adapt(backbone: nn.Module, how: Adaptation, key: str) -> None:
    """Freeze what is not to be trained, and add what is. In place.

    Args:
        key: the setting of the encoder, for messages: "options.text".

    Raises:
        ValueError: there are no such layers or targets.
        Refused: peft is needed and not there.
    """
    _freeze_what_has_no_gradient(backbone)
    if how.train == "all":
        return
    backbone.requires_grad_(False)
    if how.train == "top":
        _thaw_top(backbone, how.top_layers, key)
    elif how.train in ("lora", "dora"):
        _add_matrices(backbone, how, key)


def _freeze_what_has_no_gradient(backbone: nn.Module) -> None:
    """What stands for a masked patch while an encoder is pretrained."""
    for name, parameter in backbone.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)


def transformer_layers(backbone: nn.Module) -> nn.ModuleList:
    """The layers of a Transformer, from the lowest to the uppermost; empty where it has none."""
    found = nn.ModuleList()
    size = 0
    for module in backbone.modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        inner = [type(part).__name__ for part in module[0].modules()]
        parameters = sum(parameter.numel() for parameter in module.parameters())
        if any("Attention" in name for name in inner) and parameters > size:
            found, size = module, parameters
    return found


def _thaw_top(backbone: nn.Module, count: int, key: str) -> None:
    layers = transformer_layers(backbone)
    if count > len(layers):
        raise ValueError(f"{key}.top_layers={count}, and the encoder has {len(layers)} layers")
    layers[len(layers) - count :].requires_grad_(True)
    for module in backbone.modules():
        if layers in module.children():  # beside the layers stands the norm above them
            for name, child in module.named_children():
                if "norm" in name:
                    child.requires_grad_(True)


def _add_matrices(backbone: nn.Module, how: Adaptation, key: str) -> None:
    targets = _targets(backbone, how.targets, key)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Refused(
            f"{key}.train={how.train} needs the package peft, which is not there; install it: "
            "pip install 'concord-train[large]'"
        ) from None
    settings = LoraConfig(
        r=how.rank,
        lora_alpha=how.adapter_scale,
        lora_dropout=how.adapter_dropout,
        target_modules=targets,
        use_dora=how.train == "dora",
    )
    inject_adapter_in_model(settings, backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _targets(backbone: nn.Module, endings: tuple[str, ...], key: str) -> list[str]:
    """Full names of the linear layers that get matrices beside them."""
    layers = transformer_layers(backbone)
    inside = {id(module) for module in layers.modules()}
    linear = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and id(module) in inside:
            linear.append(name)
    chosen = []
    for name in linear:
        if not endings or name.endswith(endings):
            chosen.append(name)
    known = sorted({name.rpartition(".")[2] for name in linear})
    unused = [ending for ending in endings if not any(name.endswith(ending) for name in linear)]
    if unused or not chosen:
        wanted = ",".join(unused or endings)
        raise ValueError(
            f"{key}.targets={wanted}: no linear layer within the encoder's layers is called so; "
            f"there are {', '.join(known) or 'none'}{suggest(wanted, known)}"
        )
    return chosen


def note_base(holder: nn.Module, backbone: nn.Module, how: Adaptation, source: str) -> None:
    """Remember on ``holder``, whose ``backbone`` this is, what of it is not trained, and where it
    came from. Parameters must still be whole: no engine may have cut them up."""
    if how.train == "all" or is_sketched():
        return
    digest = hashlib.sha256()
    names = []
    frozen = dict(backbone.named_parameters())
    for name in sorted(frozen):
        parameter = frozen[name]
        if parameter.requires_grad:
            continue
        names.append(f"backbone.{name}")
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        numbers = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(memoryview(numbers))  # type: ignore[arg-type]
    setattr(holder, BASE, FrozenBase(source, digest.hexdigest(), frozenset(names)))


def bases_of(model: nn.Module) -> dict[str, FrozenBase]:
    """Module with a backbone -> its base, names of parameters as the whole model has them."""
    bases = {}
    for name, module in model.named_modules():
        base = getattr(module, BASE, None)
        if base is not None:
            prefix = f"{name}." if name else ""
            names = frozenset(f"{prefix}{inner}" for inner in base.names)
            bases[name] = FrozenBase(base.source, base.sha256, names)
    return bases


def refuse_other_bases(
    model: nn.Module, recorded: Mapping[str, Mapping[str, str]], where: str
) -> None:
    """Refused unless the model's bases are those that a checkpoint was made with."""
    here = bases_of(model)
    for name, facts in recorded.items():
        base = here.get(name)
        if base is None or base.sha256 != facts["sha256"]:
            found = "none" if base is None else f"{base.source} (SHA-256 {base.sha256[:16]})"
            raise Refused(
                f"{where} holds what was trained on top of the encoder {facts['source']} (SHA-256 "
                f"{facts['sha256'][:16]}) for {name}, and here it is {found}; give that encoder "
                "as options.text.source, options.audio.source or options.vision.source"
            )


def layer_heights(model: nn.Module) -> dict[int, int]:
    """id of a parameter of a backbone -> how many layers stand above its own; what is below all
    layers has as many as there are."""
    heights: dict[int, int] = {}
    for backbone in _backbones(model):
        layers = transformer_layers(backbone)
        for parameter in backbone.parameters():
            heights[id(parameter)] = len(layers)
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                heights[id(parameter)] = len(layers) - 1 - number
    return heights


def _backbones(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        backbone: Any = getattr(module, "backbone", None)
        if isinstance(backbone, nn.Module):
            yield backbone


def base_facts(model: nn.Module) -> dict[str, dict[str, str]]:
    """Module with a backbone -> where its base is from and the checksum, as plain JSON."""
    facts = {}
    for name, base in bases_of(model).items():
        facts[name] = {"source": base.source, "sha256": base.sha256}
    return facts
