"""How numbers are written for a reader: decimal bytes, seconds to hours, percent.

`rich.filesize` writes one decimal, too few to compare runs by, and has no unit shared by an axis.
"""

from __future__ import annotations

BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
TIME_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def byte_unit(largest_bytes: float) -> tuple[float, str]:
    """Divisor and name of the unit that suits numbers up to `largest_bytes`."""
    return next((unit for unit in BYTE_UNITS if largest_bytes >= unit[0]), BYTE_UNITS[-1])


def time_unit(largest_s: float) -> tuple[float, str]:
    """Divisor and name of the unit that suits durations up to `largest_s`, changing over only where it reads better."""
    return next((unit for unit in TIME_UNITS if largest_s >= 3 * unit[0]), TIME_UNITS[-1])


def size(size_bytes: float) -> str:
    """A size with its unit, to three or more digits."""
    divisor, unit = byte_unit(size_bytes)
    return f"{_digits(size_bytes / divisor) if divisor > 1 else format(size_bytes, '.0f')} {unit}"


def short_size(size_bytes: float) -> str:
    """Write a size with its unit, to three digits."""
    divisor, unit = byte_unit(size_bytes * 1.0005)  # 999.9 kB is written 1 MB
    return f"{size_bytes / divisor:.3g} {unit}"


def duration(seconds: float) -> str:
    """A duration with its unit, to three or more digits."""
    divisor, unit = time_unit(seconds)
    return f"{_digits(seconds / divisor)} {unit}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def level(share: float) -> str:
    """A round share, without the digits that it does not have."""
    return f"{100 * share:.4g}%"


def count(number: float) -> str:
    """A number of things, or a mean of such numbers, with thousands apart."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """Write a number of things to three digits: `79.7 k`."""
    divisor, unit = next((unit for unit in COUNT_UNITS if number >= 0.9995 * unit[0]), (1.0, ""))
    return f"{number / divisor:.3g} {unit}".rstrip() if divisor > 1 else f"{number:.0f}"


def shortened(text: str, letters: int) -> str:
    """A text cut to so many letters, with an ellipsis for the rest."""
    return text if len(text) <= letters else f"{text[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"


def _digits(value: float) -> str:
    decimals = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:,.{decimals}f}"
