"""A model's parameters without their memory: what a file says of a model is compared with the
tensors beside it before any of them is allocated.

A width of a million costs the author of a ``config.json`` seven characters, and its reader
terabytes. On PyTorch's meta device the same constructor makes shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from core.command import Refused

Built = TypeVar("Built", bound=nn.Module)
# Constructors drop some of what they make (a pooler, a table of words), never most of it.
SPARE = 64
META = torch.device("meta")


def is_sketched() -> bool:
    """Whether the model that is being built is a sketch, so that reading weights is useless."""
    return torch.empty(0).device == META


def sketch(build: Callable[[], Built], stored: int, where: str) -> Built | None:
    """The model that ``build`` makes, as shapes; None where a constructor needs numbers.

    Args:
        stored: how many parameters there are in the file that it is compared with.
        where: what describes the model, for the message.

    Raises:
        Refused: it has far more than those, so it may have no end. And what ``build`` refuses.
    """
    try:
        with META, _at_most(2 * stored + SPARE, where):
            return build()
    except RuntimeError as error:
        if "meta" in str(error).lower():  # what PyTorch says of numbers that are not there
            return None
        raise


@contextmanager
def _at_most(limit: int, where: str) -> Iterator[None]:
    """Refused when more than ``limit`` parameters are made inside."""
    count = 0

    def note(_module: nn.Module, _name: str, _parameter: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise Refused(
                f"{where} describes a model of more than {limit} parameters, and far fewer are "
                "stored beside it; restore the file"
            )

    hook = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()
