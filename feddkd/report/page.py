"""Puts a report together: one page that needs nothing but itself, and its pictures and tables as files beside it."""

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
from feddkd.config.main_metric import metric_difference
from feddkd.errors import ConfigError
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link
from feddkd.report import tables
from feddkd.report.groups import Group, group_runs
from feddkd.report.sections import Drawing, Section, sections_of
from feddkd.report.style import FONT, style
from feddkd.report.table import Table
from feddkd.report.table_files import TABLES, write_tables

PNG_DPI = 200

FORMATS = ("png", "svg", "pdf")
"""Of the pictures beside the page."""

PAGE_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Arial, DejaVu Sans, sans-serif"
"""Of the page, and of the text in its pictures, which is laid out for a wide font."""

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
    table: Table | None = None
    absent: list[str] = field(default_factory=list)
    left_out: int = 0


def write_report(
    runs: Sequence[RunFolder],
    page: Path,
    title: str | None = None,
    link: Link | None = None,
    left_out: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
) -> Path:
    """Write the page, and its pictures and tables into a folder of the same name beside it.

    Each table of `tables/` is there as CSV, Markdown and LaTeX.

    Args:
        link: a network over which the runs' time is estimated; None for no such section.
        left_out: folders that could not be read, and why; the page names them.
        formats: of the pictures; a PDF takes as long as all the rest of a picture.

    Returns:
        The folder of the pictures.

    Raises:
        ConfigError: runs have different tasks or metrics, or the page, a picture or a table cannot be written.
    """
    for run in runs:
        if (found := metric_difference(run.config, runs[0].config)) is not None:
            raise ConfigError(f"{run.path} and {runs[0].path} cannot be compared: {found}")
    groups = group_runs(runs)
    folder = page.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style():
            sections = [_rendered(section, folder, formats) for section in sections_of(groups, link)]
        shown = _Tables.of(groups, sections)
        write_tables(shown.all, folder / TABLES)
        page.write_text(_html(groups, sections, shown, title, left_out), encoding="utf-8")
    except OSError as error:
        where = error.filename or page
        raise ConfigError(f"cannot write the report to {where}: {error.strerror}") from error
    return folder


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables of a page; those of its sections are in `all` only."""

    summary: Table | None
    runs: Table | None
    differences: Table | None
    versions: Table | None
    all: list[Table]

    @classmethod
    def of(cls, groups: Sequence[Group], sections: Sequence[PageSection]) -> _Tables:
        summary, runs = tables.summary(groups), tables.runs(groups)
        differences, versions = tables.differences(groups), tables.versions(groups)
        own = [section.table for section in sections]
        every = [summary, runs, *own, differences, versions]
        is_single = len(groups) == 1
        return cls(
            None if is_single else summary,
            None if is_single and len(groups[0].runs) == 1 else runs,
            differences,
            versions,
            [table for table in every if table is not None],
        )


def _html(
    groups: Sequence[Group],
    sections: Sequence[PageSection],
    shown: _Tables,
    title: str | None,
    left_out: Sequence[str],
) -> str:
    # Everything that comes out of a record passes through autoescape; the template marks nothing as safe.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("feddkd.report").joinpath("page.html").read_text(encoding="utf-8")
    is_one_run = len(groups) == len(groups[0].runs) == 1
    return environment.from_string(source).render(
        font=PAGE_FONT,
        title=title or tables.title(groups),
        subtitle=tables.subtitle(groups),
        left_out=left_out,
        tiles=tables.headlines(groups[0].runs[0]) if is_one_run else [],
        tables=shown,
        sections=sections,
        configurations=tables.configurations(groups),
        feddkd_version=__version__,
    )


def _rendered(section: Section, folder: Path, formats: Sequence[str]) -> PageSection:
    pictures = [_save(drawing, folder, formats) for drawing in section.drawings]
    return PageSection(section.title, pictures[:OPEN_PICTURES], pictures[OPEN_PICTURES:], section.table, section.absent, section.left_out)


def _save(drawing: Drawing, folder: Path, formats: Sequence[str]) -> Picture:
    """Write the files; embed the SVG, which is sharp on every screen and smaller."""
    figure, svg = drawing.figure, io.BytesIO()
    with warnings.catch_warnings():
        # A path or a name may hold letters that the font lacks: a box in their place is no reason for alarm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Laying out takes as long as drawing: once is enough for all files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
        if "png" in formats:
            figure.savefig(folder / f"{drawing.name}.png", dpi=PNG_DPI, format="png")
        if "pdf" in formats:
            pdf = folder / f"{drawing.name}.pdf"
            figure.savefig(pdf, format="pdf", facecolor="none", metadata={"CreationDate": None})
    content = svg.getvalue().replace(f"'{FONT}'".encode(), PAGE_FONT.encode())
    if "svg" in formats:
        (folder / f"{drawing.name}.svg").write_bytes(content)
    width, height = _css_pixels(figure)
    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(drawing.title, drawing.caption, drawing.alt, source, width, height)


def _css_pixels(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches()
    return round(96 * width), round(96 * height)
