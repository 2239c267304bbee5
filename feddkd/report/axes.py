"""Logarithmic axes and the names on them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from feddkd.report import units


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis with enough names on it even if it covers little more than one power of ten."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    # Compared by products: the quotient of two representable numbers may not be one.
    subs = (1.0,) if high > 300 * low else (1.0, 3.0) if high > 40 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())


def short_size(size_bytes: float) -> str:
    """A size at a tick of an axis."""
    divisor, unit = units.byte_unit(size_bytes * 1.0001)  # a tick at 1e6 may lie a bit below it
    return f"{size_bytes / divisor:.3g} {unit}"
