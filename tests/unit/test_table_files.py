"""Tables as CSV, Markdown and LaTeX: whatever their cells hold, they stay tables."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from feddkd.observability.budgets import spread
from feddkd.report.table import Data, Table, best_cells
from feddkd.report.table_files import as_csv, as_latex, as_markdown, latex_text, write_tables
from feddkd.report.tables import best_scores, score_caption, score_text

RESULTS = Table(
    ["configuration", "final accuracy (%)", "n"],
    [["FedDKD, lr=0.1 & more", "97.62 \N{PLUS-MINUS SIGN} 0.25", "3"], ["my_own:A|B", "not recorded", "1"]],
    ["#0072B2", "#7A7A7A"],
    frozenset({(0, 1)}),
    "100 % of it.",
    Data(["configuration", "accuracy_mean"], [["FedDKD, lr=0.1 & more", 0.9761904761904762], ["my_own:A|B", None]]),
    "results",
    "Whole runs",
)


def test_latex_is_escaped_and_has_booktabs_rules_and_the_best_in_bold() -> None:
    text = as_latex(RESULTS)
    assert text.splitlines()[1:] == [
        r"\begin{table}[htbp]",
        r"  \centering",
        r"  \caption{Whole runs. 100 \% of it.}",
        r"  \label{tab:results}",
        r"  \begin{tabular}{lrr}",
        r"    \toprule",
        r"    configuration & final accuracy (\%) & n \\",
        r"    \midrule",
        r"    FedDKD, lr=0.1 \& more & \textbf{97.62 $\pm$ 0.25} & 3 \\",
        r"    my\_own:A\textbar{}B & not recorded & 1 \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def test_markdown_has_the_best_in_bold_and_no_cell_ends_another() -> None:
    assert as_markdown(RESULTS).splitlines() == [
        "| configuration | final accuracy (%) | n |",
        "| :-- | --: | --: |",
        "| FedDKD, lr=0.1 & more | **97.62 \N{PLUS-MINUS SIGN} 0.25** | 3 |",
        r"| my\_own:A\|B | not recorded | 1 |",
        "",
        "Whole runs. 100 % of it.",
    ]


def test_csv_has_all_digits_and_nothing_where_nothing_is_known() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(RESULTS))))
    assert rows == [["configuration", "accuracy_mean"], ["FedDKD, lr=0.1 & more", "0.9761904761904762"], ["my_own:A|B", ""]]


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    table = Table(["site"], [["=1+1"]], [], data=Data(["site", "number"], [["=HYPERLINK(1)", -0.5]]))
    assert as_csv(table) == "site,number\n'=HYPERLINK(1),-0.5\n"


cells = st.text(max_size=30)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4), cells)
def test_whatever_cells_hold_the_syntax_holds(rows: list[tuple[str, str, str]], caption: str) -> None:
    table = Table(["a", "b", "c"], [list(row) for row in rows], [], frozenset({(0, 1)}), caption)
    assert [len(row) for row in csv.reader(io.StringIO(as_csv(table)))] == [3] * (len(rows) + 1)
    markdown = as_markdown(table).splitlines()
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4 for line in markdown[: len(rows) + 2])
    assert_is_latex(as_latex(table), columns=3, rows=len(rows))


def assert_is_latex(text: str, columns: int, rows: int) -> None:
    """A small grammar: known commands, balanced braces and environments, as many cells as columns, nothing unescaped."""
    body = [line for line in text.splitlines() if not line.startswith("%")]
    escaped = [re.sub(r"\\[&%$#_{}]", "", line) for line in body]
    commands = set(re.findall(r"\\([a-z]+)", "\n".join(escaped), flags=re.IGNORECASE))
    assert commands <= {
        *("begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule", "textbf", "pm", "times"),
        *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl", "ldots"),
    }
    for line in escaped:
        assert line.count("{") == line.count("}")
        assert not re.search(r"[#_^~%]", line)
        assert line.count("$") % 2 == 0
    lines = [line for line in escaped if line.endswith(r"\\")]
    assert [line.count("&") for line in lines] == [columns - 1] * (rows + 1)
    assert sum("\\begin{" in line for line in body) == sum("\\end{" in line for line in body) == 2


def test_a_line_break_or_an_escape_sequence_stays_in_its_cell() -> None:
    assert latex_text("a\nb\tc") == "a b c"
    assert latex_text("\x1b[31m") == r"\textbackslash{}x1b[31m"


def test_a_minus_is_one_and_a_hyphen_stays_one() -> None:
    minus = "$-$"
    assert latex_text("behind (-1.27)") == f"behind ({minus}1.27)"
    assert latex_text("-0.6 points") == f"{minus}0.6 points"
    assert latex_text("-") == minus
    assert latex_text("-: not reached") == f"{minus}: not reached"
    assert [latex_text(text) for text in ("fedavg-seed0", "client-0", "1e-05", "2026-11-30")] == [
        *("fedavg-seed0", "client-0", "1e-05", "2026-11-30")
    ]


def test_a_wide_table_is_no_wider_than_the_text() -> None:
    header = ["configuration", *["gradient evaluations"] * 7]
    lines = as_latex(Table(header, [["a", *["1"] * 7]], [])).splitlines()
    assert r"\usepackage{adjustbox}" in lines[0]
    assert lines[-3:] == [r"  \end{tabular}", r"  \end{adjustbox}", r"\end{table}"]
    assert lines.index(r"  \begin{adjustbox}{max width=\linewidth}") < lines.index(r"  \begin{tabular}{lrrrrrrr}")
    assert lines[lines.index(r"    \toprule") + 1].count(r"\shortstack[r]{gradient\\evaluations}") == 7


def test_each_table_is_three_files_and_the_folder_is_made(tmp_path: Path) -> None:
    write_tables([RESULTS], tmp_path / "new" / "tables")
    assert {file.name for file in (tmp_path / "new" / "tables").iterdir()} == {"results.csv", "results.md", "results.tex"}


def test_one_run_has_no_deviation_and_the_caption_says_which_one_it_is() -> None:
    assert score_text(spread([0.975])) == "97.50"
    assert score_text(spread([0.97, 0.98])) == "97.50 \N{PLUS-MINUS SIGN} 0.71"
    assert score_text(None) == "not recorded"
    assert "n = 1" in score_caption([1, 1])
    assert "sample standard deviation over n = 3 runs" in score_caption([3, 3])
    assert "sample standard deviation over n runs" in score_caption([3, 1])


def test_the_best_are_all_that_read_like_the_best_unless_all_do() -> None:
    assert best_scores(2, [spread([0.97501]), spread([0.97499]), spread([0.5]), None]) == {(0, 2), (1, 2)}
    assert best_scores(2, [spread([0.9]), None]) == {(0, 2)}
    assert best_scores(2, [spread([0.9])]) == best_scores(2, [None, None]) == set()
    assert best_scores(2, [spread([0.9]), spread([0.9])]) == set()
    assert set(best_cells(1, ["2 s", "3 s", "-"], [2.0, 3.0, None], min)) == {(0, 1)}
