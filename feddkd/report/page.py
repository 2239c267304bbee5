"""Puts a report together: one page that needs nothing but itself, and the same pictures as PNG files beside it."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from feddkd import __version__
from feddkd.errors import ConfigError
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link
from feddkd.report import tables
from feddkd.report.groups import Group, group_runs
from feddkd.report.sections import Drawing, Section, sections_of
from feddkd.report.style import hue, style

PNG_DPI = 200

OPEN_PICTURES = 6
"""A section folds the pictures after this many."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing as the page embeds it: an SVG in a data URI."""

    title: str
    caption: str
    alt: str
    source: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PageSection:
    """A section as the page shows it."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    folded: list[Picture] = field(default_factory=list)
    table: tables.Table | None = None
    absent: list[str] = field(default_factory=list)
    left_out: int = 0


def write_report(runs: Sequence[RunFolder], page: Path, title: str | None = None, link: Link | None = None) -> Path:
    """Write the page, and its pictures as PNG files into a folder of the same name beside it.

    Args:
        link: a network over which the runs' time is estimated; None for no such section.

    Returns:
        The folder of the PNG files.

    Raises:
        ConfigError: the page or a picture cannot be written.
    """
    groups = group_runs(runs)
    folder = page.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style():
            sections = [_rendered(section, folder) for section in sections_of(groups, link)]
        page.write_text(_html(groups, sections, title), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the report to {error.filename or page}: {error.strerror}") from error
    return folder


def _html(groups: Sequence[Group], sections: Sequence[PageSection], title: str | None) -> str:
    # Everything that comes out of a record passes through autoescape; the template marks nothing as safe.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("feddkd.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title or tables.title(groups),
        subtitle=tables.subtitle(groups),
        tiles=tables.headlines(groups[0].runs[0]) if len(groups) == len(groups[0].runs) == 1 else [],
        summary=tables.summary(groups) if len(groups) > 1 else None,
        runs=tables.runs(groups) if len(groups) > 1 or len(groups[0].runs) > 1 else None,
        hues=[hue(index) for index in range(len(groups))],
        sections=sections,
        differences=tables.differences(groups),
        configurations=tables.configurations(groups),
        versions=tables.versions(groups),
        feddkd_version=__version__,
    )


def _rendered(section: Section, folder: Path) -> PageSection:
    pictures = [_save(drawing, folder) for drawing in section.drawings]
    return PageSection(section.title, pictures[:OPEN_PICTURES], pictures[OPEN_PICTURES:], section.table, section.absent, section.left_out)


def _save(drawing: Drawing, folder: Path) -> Picture:
    """Write the PNG; embed the SVG, which is sharp on every screen and smaller."""
    svg = io.BytesIO()
    with warnings.catch_warnings():
        # A path or a name may hold letters that the font lacks: a box in their place is no reason for alarm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Laying out takes as long as drawing: once is enough for both files.
        drawing.figure.draw_without_rendering()
        drawing.figure.set_layout_engine("none")
        drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=PNG_DPI, format="png")
        drawing.figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    width, height = _css_pixels(drawing.figure)
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode('ascii')}"
    return Picture(drawing.title, drawing.caption, drawing.alt, source, width, height)


def _css_pixels(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches()
    return round(96 * width), round(96 * height)
