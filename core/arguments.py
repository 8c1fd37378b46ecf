"""How every command reads its words: options as ``--out DIR``, settings as ``key=value`` anywhere
on the line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from core.environment.credentials import redact

SETTING = re.compile(r"[A-Za-z_][\w.]*=")  # runs/lr=0.1 is a path, lr=0.1 a setting
OPTION = re.compile(r"--[A-Za-z][\w-]*")
NEGATIVE = re.compile(r"-\.?\d")


class Parser(argparse.ArgumentParser):
    """One whose complaints about a word do not repeat the credentials in it."""

    def error(self, message: str) -> NoReturn:
        super().error(redact(message))


def command_parser(
    command: str, description: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """A parser for ``concord COMMAND``; the description is a module's docstring."""
    return Parser(
        prog=f"concord {command}",
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The command line, or ``arguments``, with options and other words in any order."""
    words = sys.argv[1:] if arguments is None else arguments
    return parser.parse_intermixed_args(join_negative_values(words))


def join_negative_values(words: Sequence[str]) -> list[str]:
    """``--labels -3:3`` as ``--labels=-3:3``: argparse would take the value for an option."""
    joined: list[str] = []
    for word in words:
        follows_option = joined and OPTION.fullmatch(joined[-1])
        if follows_option and NEGATIVE.match(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names (of a recipe, a run, a folder) and settings (``key=value``, ``@FILE``), each in their
    order."""
    names: list[str] = []
    settings: list[str] = []
    for word in words:
        is_setting = word.startswith("@") or SETTING.match(word)
        (settings if is_setting else names).append(word)
    return names, settings
