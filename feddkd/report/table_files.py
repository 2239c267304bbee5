"""Writes tables as files: CSV for programs, Markdown for pages, LaTeX with booktabs for papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from feddkd.report.table import NOT_RECORDED, Table, Value
from feddkd.text import printable

TABLES = "tables"
"""Folder of the tables, beside the pictures of a report."""

LATEX_WORDS = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "…": r"\ldots{}",
}
"""What LaTeX writes for letters that mean something to it, or that old fonts lack."""

MINUS = re.compile(r"(?<!\S)-(?=\d|:|$)|(?<=\()-(?=\d)")
"""A hyphen that stands for a minus sign or for a missing number, and is none within a word."""

WIDE = 8
"""A table of so many columns gets small type, headers on two lines, and no more than the width of the text."""

MOST_LETTERS = 10_000
"""Of a cell or a caption."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a text that begins like this for a formula."""

MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~#])")


def write_tables(tables: Iterable[Table], folder: Path) -> None:
    """Write each table as `NAME.csv`, `NAME.md` and `NAME.tex` into a folder, which is made.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix, write in WRITERS.items():
            (folder / f"{table.name}{suffix}").write_text(write(table), encoding="utf-8")


def as_csv(table: Table) -> str:
    """Return the numbers of a table with all their digits, or its text where it has no other."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields, rows = (table.data.fields, table.data.rows) if table.data else (table.header, table.rows)
    writer.writerow(fields)
    for row in rows:
        writer.writerow(map(_csv_value, row))
    return stream.getvalue()


def _csv_value(value: Value) -> str | int | float:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = printable(value, MOST_LETTERS)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def as_markdown(table: Table) -> str:
    """Return a table in Markdown as GitHub reads it, the cells that stand out bold."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    ruler = ["--:" if is_number else ":--" for is_number in numeric_columns(table)]
    rows = _marked(table, _markdown_text, lambda text: f"**{text}**")
    lines = [line([_markdown_text(name) for name in table.header]), line(ruler), *map(line, rows)]
    if table.whole_caption:
        lines += ["", _markdown_text(table.whole_caption)]
    return "\n".join(lines) + "\n"


def as_latex(table: Table) -> str:
    r"""Return a table for `\input`, the cells that stand out bold; it needs the package booktabs, a wide one also adjustbox."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(cells)} \\\\"

    columns = "".join("r" if is_number else "l" for is_number in numeric_columns(table))
    rows = _marked(table, latex_text, lambda text: f"\\textbf{{{text}}}")
    is_wide = len(table.header) >= WIDE
    header = [(_stacked if is_wide else latex_text)(name) for name in table.header]
    tabular = [
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        line(header),
        r"    \midrule",
        *map(line, rows),
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    if is_wide:
        fit = [r"  \small", r"  \setlength{\tabcolsep}{4pt}", r"  \begin{adjustbox}{max width=\linewidth}"]
        tabular = [*fit, *tabular, r"  \end{adjustbox}"]
    packages = r"\usepackage{booktabs}, \usepackage{adjustbox}" if is_wide else r"\usepackage{booktabs}"
    lines = [
        rf"% Written by feddkd. In the preamble: {packages} and \usepackage[T1]{{fontenc}}",
        r"\begin{table}[htbp]",
        r"  \centering",
        f"  \\caption{{{latex_text(table.whole_caption)}}}",
        f"  \\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', table.name)}}}",
        *tabular,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def numeric_columns(table: Table) -> list[bool]:
    """Tell which columns hold numbers, which are aligned to the right."""
    columns = zip(*table.rows, strict=True) if table.rows else ([] for _ in table.header)
    return [_holds_numbers(column) for column in columns]


def _holds_numbers(cells: Iterable[str]) -> bool:
    """Whether every cell that says something begins like a number."""
    said = [cell for cell in cells if cell not in ("", "-", NOT_RECORDED)]
    return bool(said) and all(re.match(r"[+-]?\d", cell) for cell in said)


def latex_text(text: str) -> str:
    """Escape a text for LaTeX, on one line."""
    line = MINUS.sub("\N{MINUS SIGN}", _one_line(text))
    return "".join(LATEX_WORDS.get(letter, letter) for letter in line)


def _stacked(name: str) -> str:
    """A header on two lines, the first word above the others."""
    first, _, rest = name.partition(" ")
    return f"\\shortstack[r]{{{latex_text(first)}\\\\{latex_text(rest)}}}" if rest else latex_text(name)


def _markdown_text(text: str) -> str:
    return MARKDOWN_SIGNS.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()), MOST_LETTERS)


def _marked(table: Table, escape: Callable[[str], str], strengthen: Callable[[str], str]) -> list[list[str]]:
    """The cells of a table, escaped, and those that stand out marked."""
    return [
        [strengthen(escape(cell)) if (row, column) in table.strong and cell else escape(cell) for column, cell in enumerate(cells)]
        for row, cells in enumerate(table.rows)
    ]


WRITERS: dict[str, Callable[[Table], str]] = {".csv": as_csv, ".md": as_markdown, ".tex": as_latex}
"""By the suffix of the file."""
