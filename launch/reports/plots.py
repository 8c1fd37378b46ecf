"""How every plot of the project looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK = "#333333"
COLORS = ("#1f77b4", "#d95f02", "#2a9d55", "#7b5ea7", "#b8860b", "#c2437e", "#5a6772")


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure with one or several axes, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(1, columns)
    for one in axes.flat if columns > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
        one.set_prop_cycle(color=COLORS)
    return drawing, axes


def save(drawing: Any, path: Path) -> str:
    """Write a PNG; its file name."""
    drawing.savefig(path, metadata={"Software": None})
    return path.name
