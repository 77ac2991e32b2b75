"""Charts of a run, drawn with matplotlib (the extra "plot")."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_jax.printing import printable
from detr_jax.visualization.fonts import font_file

Curve = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""The x and y values of a line."""


_LONGEST = 60  # characters of a text in a chart


class MissingMatplotlib(ImportError):
    """matplotlib is not installed."""


def check_matplotlib() -> None:
    """Raises `MissingMatplotlib` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingMatplotlib("A report needs matplotlib: pip install 'detr_jax[plot]'.")


def _draw(
    path: Path, size: tuple[float, float], paint: Callable[[Any], None], title: str, names: Iterable[str]
) -> None:
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # "$" in a name does not begin a formula
    with rc_context({"font.family": _families(names), "text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(_shown(title), fontsize=12)
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        figure.savefig(path)


def _shown(text: str) -> str:
    """A text from a file on one line: without control characters, and not too long for a chart."""
    line = printable(text).replace("\n", "\\n")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _families(names: Iterable[str]) -> list[str]:
    """matplotlib's own font, and fonts of the system for the characters that it lacks."""
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for file in sorted({font_file(name) or "" for name in names} - {""}):
        fontManager.addfont(file)
        families.append(FontProperties(fname=file).get_name())
    return families


def lines(
    path: Path, title: str, curves: Mapping[str, Curve], *, x: str, y: str, log: bool = False, unit: bool = False
) -> None:
    """Writes a chart of named curves. Equal curves are drawn once, with all their names.

    Args:
      path: the file to write.
      title: title of the chart.
      curves: x and y values by name.
      x: label of the x axis.
      y: label of the y axis.
      log: whether the y axis is logarithmic, if values are above 0 and none is below.
      unit: whether the y axis goes from 0 to 1.
    """
    names: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for name, (xs, ys) in curves.items():
        names.setdefault((tuple(xs), tuple(ys)), []).append(name)

    def paint(axes: Any) -> None:
        from matplotlib.ticker import LogLocator

        for (xs, ys), same in names.items():
            label = ", ".join(map(_shown, same))
            label = (
                f" {label}" if label.startswith("_") else label
            )  # matplotlib's legend ignores labels that begin with _
            axes.plot(xs, ys, label=label, linewidth=1.6, marker="o" if len(xs) < 3 else None)
        axes.set_xlabel(_shown(x))
        axes.set_ylabel(_shown(y))
        axes.grid(alpha=0.25)
        values = [value for _, ys in curves.values() for value in ys]
        if log and max(values, default=0) > 0 and min(values) >= 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        if unit:
            axes.set_ylim(0, 1.02)
        if len(curves) > 1:
            axes.legend(fontsize=9, frameon=False)

    _draw(path, (6, 3.8), paint, title, curves)


def bars(path: Path, title: str, values: Mapping[str, float], *, x: str) -> None:
    """Writes a chart with one horizontal bar per name, the largest value on top."""
    names = sorted(values, key=lambda name: values[name])

    def paint(axes: Any) -> None:
        drawn = axes.barh(range(len(names)), [values[name] for name in names], color="#4363d8")
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9)
        axes.set_yticks(range(len(names)), list(map(_shown, names)))
        axes.set_xlabel(_shown(x))
        axes.set_xlim(0, 1.05)
        axes.margins(y=0.01)

    _draw(path, (6, max(2.2, 0.9 + 0.27 * len(names))), paint, title, names)


def confusion_matrix(path: Path, title: str, counts: np.ndarray, names: Sequence[str]) -> None:
    """Writes a picture of a matrix [C + 1, C + 1] of counts.

    The colour of a cell is its share of the row. Up to 24 rows, the counts are written into the cells.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(2.5 + 0.35 * len(counts), 5, 18))

    def paint(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(counts)), [*map(_shown, names), "missed"], rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(len(counts)), [*map(_shown, names), "no object"], fontsize=9)
        axes.set_xlabel("detected as")
        axes.set_ylabel("true class")
        for row, column in np.argwhere(counts) if len(counts) <= 24 else ():
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=9, color=color)

    _draw(path, (size, size * 0.9), paint, title, names)
