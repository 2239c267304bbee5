import io
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.text import PrintableFilter, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("connection lost: größer, 漢字, µ", "connection lost: größer, 漢字, µ"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\r\nb\tc\x85d\u2028e", "a\\r\\nb\\tc\\x85d\\u2028e"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
        ("", ""),
    ],
)
def test_what_is_not_visible_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=300), st.integers(3, 200))
def test_any_text_fits_on_one_line_of_visible_characters(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert all(unicodedata.category(character)[0] not in "CZ" or character == " " for character in shown)
    assert shown.encode("utf-8").decode("utf-8") == shown


def test_a_long_text_is_cut_and_says_so() -> None:
    assert printable("x" * 10**6, 10) == "xxxxxxx..."
    assert printable("\n" * 10, 10) == "\\n\\n\\n\\..."
    assert printable("x" * 10, 10) == "x" * 10


def logged(message: str, *arguments: object, error: Exception | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(PrintableFilter())
    logger = logging.Logger("a client's text")
    logger.addHandler(handler)
    logger.error(message, *arguments, exc_info=error)
    return stream.getvalue()


def test_a_log_entry_is_one_line() -> None:
    assert logged("%s: %s", "site-a", "full\nroot: logged in \x1b[31m") == "site-a: full\\nroot: logged in \\x1b[31m\n"


def test_an_entry_whose_argument_looks_like_a_format_is_kept() -> None:
    assert logged("%s", "100 %s") == "100 %s\n"


def test_a_traceback_keeps_its_lines_and_loses_its_control_characters() -> None:
    try:
        raise ValueError("\x1b[2J\x07")
    except ValueError as error:
        said = logged("failed", error=error)
    assert said.splitlines()[0] == "failed"
    assert "Traceback (most recent call last):" in said.splitlines()[1]
    assert said.splitlines()[-1] == "ValueError: \\x1b[2J\\x07"
