"""The values that a setting may take in a search, written like ``loguniform(1e-4, 1e-2)``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from launch.config import ConfigError

FORMS = (
    "uniform(a, b), loguniform(a, b), randint(a, b), lograndint(a, b), quniform(a, b, step), "
    "choice(x, y, ...) or none (not searched); bounds belong to the range"
)
NUMBERS = {"uniform": 2, "loguniform": 2, "randint": 2, "lograndint": 2, "quniform": 3}
WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float = 0.0  # 0: any number

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                "a range goes from a smaller to a larger number, "
                f"not from {self.low} to {self.high}"
            )
        if self.log and self.low <= 0:
            raise ConfigError(f"a logarithmic range starts above 0, not at {self.low}")

    @property
    def countable(self) -> bool:
        """Whether a grid can hold every value."""
        return bool(self.step) or (self.whole and not self.log)

    def contains(self, value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def __str__(self) -> str:
        if self.step:
            return f"quniform({self.low}, {self.high}, {self.step})"
        scale = "log" if self.log else ""
        kind = "randint" if self.whole else "uniform"
        return f"{scale}{kind}({self.low}, {self.high})"


@dataclass(frozen=True)
class Choice:
    """One of a few values of any kind."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("choice() needs at least one value")
        for index, value in enumerate(self.values):
            if value in self.values[:index]:  # no set: values may be lists
                raise ConfigError(f"a value stands twice in {self}")

    def contains(self, value: Any) -> bool:
        return value in self.values

    def ends(self) -> list[Any]:
        return list(self.values)

    def __str__(self) -> str:
        return f"choice({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class Around:
    """Numbers up to ``factor`` times smaller or larger than the recipe's; for default spaces."""

    factor: float

    def of(self, value: float) -> Range:
        return Range(_rounded(value / self.factor), _rounded(value * self.factor), log=True)


Domain = Range | Choice


def _rounded(value: float) -> float:
    """Six digits: a bound that is worked out is still one that a person would write."""
    return float(f"{value:.6g}")


def read_domain(key: str, text: str) -> Domain | None:
    """``text`` as a domain, or None for ``none``. It is read, not evaluated.

    Raises:
        ConfigError: it cannot be read; the message names ``key`` and the forms that there are.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name) and node.id == "none":
            return None
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
            raise ValueError("not of the form name(values)")
        return _domain(node.func.id, [_value(argument) for argument in node.args])
    except (SyntaxError, ValueError, TypeError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"cannot read space.{key}={text} ({reason}); write one of {FORMS}"
        ) from None


def _value(node: ast.expr) -> Any:
    """A literal; a bare word stands for itself. Sequences become lists, as they are in JSON."""
    if isinstance(node, ast.Name):
        return WORDS.get(node.id, node.id)
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def _domain(name: str, values: list[Any]) -> Domain:
    if name == "choice":
        return Choice(tuple(values))
    if name not in NUMBERS:
        raise ValueError(f"there is no {name}()")
    if len(values) != NUMBERS[name]:
        raise ValueError(f"{name}() takes {NUMBERS[name]} numbers")
    whole = name.endswith("randint")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"{name}() takes {'whole ' if whole else ''}numbers")
    if name == "quniform":
        return _stepped_range(*values)
    low, high = values
    return Range(low, high, log=name.startswith("log"), whole=whole)


def _stepped_range(low: float, high: float, step: float) -> Range:
    if step > 0:
        steps = (high - low) / step
        if abs(steps - round(steps)) <= 1e-9:
            return Range(low, high, step=step)
    raise ValueError(f"{step} is no step that leads from {low} to {high}")


def short(key: str) -> str:
    """``options.alpha`` as ``alpha``, ``optim.groups.main.lr`` as ``main.lr``."""
    return key.removeprefix("options.").removeprefix("optim.groups.").removeprefix("optim.")


def compact(value: Any) -> str:
    """A value as tables and plots show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(changes: dict[str, Any]) -> str:
    """A configuration in one line."""
    return "  ".join(f"{short(key)}={compact(value)}" for key, value in changes.items())
