"""The words of the commands that take a recipe or finished runs: names, ``key=value``, ``@FILE``
and options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.arguments import SETTING, command_parser, parse, split_settings
from core.command import Refused
from core.file_access.json_files import kind_of, parse_json
from core.file_access.regular_files import read_regular_text
from launch.config import ConfigError, FileChange


@dataclass(frozen=True)
class CommandLine:
    names: list[str]  # of a recipe, or of folders
    changes: list[str]  # key=value, with each @FILE replaced by what it holds
    options: argparse.Namespace

    def name(self, kind: str) -> str:
        """The only name on the line.

        Raises:
            ConfigError: there is another word beside it, or none.
        """
        if not self.names:
            raise ConfigError(f"name {kind} first")
        if len(self.names) > 1:
            raise ConfigError(
                f"cannot read {self.names[1]!r}; changes are written key=value, for example batch_size=64"
            )
        return self.names[0]


def settings_parser(command: str, description: str, usage: str) -> argparse.ArgumentParser:
    """A parser whose words besides options are names and settings; for ``read``.

    Args:
        usage: the words after ``concord COMMAND``.
    """
    parser = command_parser(command, description, f"concord {command} {usage}")
    parser.add_argument("words", nargs="*", metavar="key=value", help=argparse.SUPPRESS)
    # what the launchers of processes add, and nothing here needs
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser


def read(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    also_settings: Sequence[str] = (),
) -> CommandLine:
    """The command line, or ``arguments``. Without any word the help is printed.

    Args:
        also_settings: options that may be written ``name=value`` too.

    Raises:
        ConfigError: an ``@FILE`` that cannot be read.
        SystemExit: the parser's own refusals, or the help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        parser.print_help()
        raise SystemExit(2)
    spelled = [f"--{word}" if word.partition("=")[0] in also_settings else word for word in words]
    options = parse(parser, spelled)
    names, settings = split_settings(options.words)
    return CommandLine(names, expand(settings), options)


def expand(words: Sequence[str]) -> list[str]:
    """``key=value`` words, with each ``@FILE`` replaced by the changes that the file holds."""
    changes: list[str] = []
    for word in words:
        if word.startswith("@"):
            changes += [FileChange.of(change, word) for change in changes_of_file(Path(word[1:]))]
        else:
            changes.append(word)
    return changes


def changes_of_file(path: Path) -> list[str]:
    """The changes in a file: a JSON object of settings, such as ``--show`` prints, or lines of
    ``key=value``.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        text = read_regular_text(path)
        if text.lstrip()[:1] in ("{", "[", '"'):
            settings = parse_json(text, str(path))
            if not isinstance(settings, dict):
                raise Refused(f"it holds {kind_of(settings)}, and settings are {{...}}")
            return as_changes(settings)
    except (OSError, Refused) as error:
        raise ConfigError(f"@{path}: {error}") from None
    changes = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not SETTING.match(line):
            raise ConfigError(
                f"@{path}, line {number}: cannot read {line[:80]!r}; a line is key=value, for "
                "example batch_size=64"
            )
        changes.append(line)
    return changes


def as_changes(settings: dict[str, Any]) -> list[str]:
    """Settings as the words of a command line."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
