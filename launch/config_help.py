"""What ``concord train RECIPE --help`` prints: every setting with its type, bounds, meaning and
value.

tyro reads types, values and the comments at the fields; here its options become ``key=value``, with
their bounds.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import tyro

from launch.config import Run, task_options_of

OPTION = re.compile(r"--([\w.]+) (\[?[A-Z{][^ │]*(?: [^ │]+)*)")
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def print_help(run: Run, program: str) -> None:
    """Every setting of ``run``.

    Args:
        program: the command, such as ``concord train``.
    """
    print(help_text(run, f"{program} {run.recipe}"))


def help_text(run: Run, program: str) -> str:
    """The whole help, in lines as wide as the terminal."""
    usage = f"usage: {program} data=DIR [key=value ...] [@FILE] [--show] [--list]"
    lines = [usage, *_explain(replace(run, task_options={}))[1:]]
    if run.task_options:
        task_options = task_options_of(run)
        lines += _explain(task_options, "task_options.")[1:]
    return "\n".join(lines)


def _explain(settings: Any, prefix: str = "") -> list[str]:
    """tyro's help on a dataclass, its keys below ``prefix``."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(
            type(settings),
            default=settings,
            args=["--help"],
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),
        )
    bounds = bounds_by_key(settings)
    return [as_setting(line, bounds, prefix) for line in output.getvalue().splitlines()]


def as_setting(line: str, bounds: dict[str, str], prefix: str = "") -> str:
    """A line of tyro's help with ``--epochs INT`` as ``epochs=INT > 0``, as wide as it was."""
    found = OPTION.search(line)
    if found is None:
        return line.rstrip()
    key, kind = found.groups()
    setting = f"{prefix}{key}={kind}{bounds.get(key, '')}"
    rest = line[found.end() :]
    # the spaces up to the explanation, or to the frame, give way
    room = len(rest) - len(rest.lstrip(" ")) - 1
    grown = len(setting) - (found.end() - found.start())
    padding = " " * -grown
    return (line[: found.start()] + setting + padding + rest[max(0, min(grown, room)) :]).rstrip()


def bounds_by_key(settings: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> its bounds in words, such as " > 0", of a dataclass and all within it."""
    bounds: dict[str, str] = {}
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        key, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if is_dataclass(value):
            bounds |= bounds_by_key(value, f"{key}.")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    bounds |= bounds_by_key(entry, f"{key}.{name}.")
        else:
            bounds[key] = _bounds_of(hints[field.name])
    return bounds


def _bounds_of(annotation: Any) -> str:
    """The bounds that ``Annotated[int, Field(ge=1)]`` or a type of pydantic's carries."""
    limits = []
    for mark in get_args(annotation)[1:]:
        for constraint in [mark, *getattr(mark, "metadata", ())]:
            for name, sign in SIGNS.items():
                limit = getattr(constraint, name, None)
                if limit is not None:
                    limits.append(f" {sign} {limit}")
    return ",".join(limits)
