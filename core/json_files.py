"""JSON files that a person or another program may have written: read whole, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.command import Refused
from core.regular_files import read_regular_text


def parse_json(text: str, where: str) -> Any:
    """What ``text`` says; ``where`` it is from, for the message.

    Raises:
        Refused: it is no JSON, names a key twice, or is nested without end.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise Refused(f"{where} is no usable JSON: it is nested too deeply") from None
    except ValueError as error:
        what = str(error) if text.strip() else "it is empty"
        raise Refused(f"{where} is no usable JSON: {what}") from None


def read_json(path: Path) -> Any:
    """What the file says; see ``parse_json``. OSError where it cannot be read."""
    return parse_json(read_regular_text(path), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The same of a file that must hold one object.

    Raises:
        Refused: it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise Refused(f"{path} holds {kind_of(content)}, and an object {{...}} is expected")
    return content


def kind_of(value: Any) -> str:
    """What JSON calls the value, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a word"
    return "a list" if isinstance(value, list) else "an object"


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} is there twice")
        content[key] = value
    return content
