import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feddkd.config import Config, read_tables
from feddkd.config.toml import MAX_DEPTH, MAX_SIZE, load_toml, parse_toml, parse_value
from feddkd.errors import ConfigError


def problem(text: str, **options: Any) -> str:
    """The one line that says why a text is refused."""
    with pytest.raises(ConfigError) as refused:
        parse_toml(text, "run.toml", **options)
    message = str(refused.value)
    assert message.startswith(("run.toml ", "run.toml:"))
    assert message.isprintable()
    assert len(message) < 1000
    return message


MANY = 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nx = " + "[" * 3000, "run.toml line 3: more than 32 brackets are open"),
        ("x = " + "[" * 3000 + "]" * 3000, "run.toml line 1: more than 32 brackets are open"),
        ("x = " + "{a = " * 3000, "run.toml line 1: more than 32 brackets are open"),
        ("x = " + "[{a = " * 3000, "run.toml line 1: more than 32 brackets are open"),
        ("x = 1\na" + ".a" * MANY + " = 1", "run.toml line 2: a key has more than 16 parts"),
        ("a" + " . a" * MANY + " = 1", "run.toml line 1: a key has more than 16 parts"),
        ('"a"' + '."a"' * MANY + " = 1", "run.toml line 1: a key has more than 16 parts"),
        ("[a" + ".a" * MANY + "]", "run.toml line 1: a key has more than 16 parts"),
        ("x = {a" + ".a" * MANY + " = 1}", "run.toml line 1: a key has more than 16 parts"),
        ("x = " + "9" * 5000, "run.toml line 1: a number has more than 128 characters"),
        ("x = -0x" + "f" * 5000, "run.toml line 1: a number has more than 128 characters"),
        ("x = 1." + "9" * 5000, "run.toml line 1: a number has more than 128 characters"),
        ("x = [1, 2,\n" + "9" * 5000 + "]", "run.toml line 2: a number has more than 128 characters"),
        ("".join(f"a{key} = 1\n" for key in range(20_000)), "run.toml line 10001: there are more than 10,000 keys"),
        ("[[a]]\n" * 20_000, "run.toml line 10001: there are more than 10,000 keys"),
        ("x = {" + ", ".join(f"a{key} = 1" for key in range(20_000)) + "}", "run.toml line 1: there are more than 10,000 keys"),
        ("[a.a.a.a.a.a.a.a.a.a]\na.a.a.a.a.a.a = 1", "run.toml: tables and arrays are nested more than 16 deep"),
        ("#" * MAX_SIZE + "\n", "run.toml is larger than 1,048,576 bytes"),
        ("#" + "é" * (MAX_SIZE // 2), "run.toml is larger than 1,048,576 bytes"),
        ("rounds = ", "run.toml is not valid TOML: Invalid value (at end of document)"),
        ('x = "a\n"', "run.toml is not valid TOML: Illegal character '\\n' (at line 1, column 7)"),
        ('x = """' + '\\"""' * MANY, "run.toml is not valid TOML: Unterminated string (at end of document)"),
        ("x = ]]", "run.toml is not valid TOML: Invalid value (at line 1, column 5)"),
        ("\0", "run.toml is not valid TOML: Invalid statement (at line 1, column 1)"),
    ],
)
def test_what_a_parser_would_choke_on_is_refused(text: str, message: str) -> None:
    assert problem(text) == message


@pytest.mark.parametrize(
    "text",
    [
        'x = "' + "[" * 3000 + '"',
        "x = '" + "{.=" * 3000 + "'",
        'x = """' + "[\n" * 3000 + '"""',
        "x = '''" + "'[\n" * 3000 + "'''''",
        'x = """' + '"\\"[' * 3000 + '"""""',
        '"' + "[.=" * 3000 + '" = 1',
        "# " + "[.=9" * 3000 + "\nx = 1",
        "x = [" + "1.5, " * 3000 + "2.5]",
        "x = [" + "[], " * 3000 + "[]]",
        "x = [" + "{}, " * 3000 + "{}]",
        "x = '" + "9" * 5000 + "'",
        "x = 1979-05-27T07:32:00.999999Z",
        "a" * 5000 + " = 1",
        "x = [" + "'a.b', " * 3000 + "]",
        "x = " + "[" * 15 + "]" * 15,
        "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a = 1",
    ],
)
def test_what_only_looks_like_it_is_accepted(text: str) -> None:
    assert parse_toml(text, "run.toml") == tomllib.loads(text)


tokens = st.sampled_from(
    [
        "a",
        "1",
        ".",
        "=",
        " = ",
        ",",
        "\n",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "#",
        " ",
        "\t",
        "\r\n",
        '"""\n',
        "é",
    ]
)


@given(st.lists(tokens, max_size=60).map("".join))
@example('x = """a"""""\ny = [[[1]]]')
def test_any_text_is_read_as_the_library_reads_it_or_refused(text: str) -> None:
    found = None
    with contextlib.suppress(ConfigError):
        found = parse_toml(text, "x")
    assert found is None or found == tomllib.loads(text)


@given(st.lists(tokens, max_size=40).map("".join), st.integers(0, 40))
def test_no_string_hides_a_bracket_from_the_scan(text: str, place: int) -> None:
    """Where a text is valid, as many brackets as the limit allows are counted in any place: in a string, or as nesting."""
    brackets = "[" * 33
    hidden = text[:place] + brackets + text[place:]
    try:
        parse_toml(hidden, "x")
    except ConfigError:
        return
    assert brackets in str(tomllib.loads(hidden)) or "#" in hidden


def test_the_limit_of_size_is_the_callers() -> None:
    assert parse_toml("x = 1", "run.toml", max_size=5) == {"x": 1}
    assert problem("x = 10", max_size=5) == "run.toml is larger than 5 bytes"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "notepad.toml"
    file.write_bytes(b"\xef\xbb\xbfrounds = 3\r\n")
    assert Config.load(file).rounds == 3


def test_a_file_is_not_read_beyond_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero is larger than 1,048,576 bytes$"):
        load_toml(Path("/dev/zero"))


def test_a_long_file_of_many_bytes_a_character_is_too_long(tmp_path: Path) -> None:
    file = tmp_path / "long.toml"
    file.write_text("#" + "é" * MAX_SIZE, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"long\.toml is larger than 1,048,576 bytes$"):
        load_toml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        (" 4 # four", 4),
        ("fedavg", "fedavg"),
        (" a.b:C ", "a.b:C"),
        ("it's", "it's"),
        ("3\nseed = 4", "3\nseed = 4"),
        ("", ""),
    ],
)
def test_the_value_of_an_override_is_toml_or_a_bare_word(text: str, value: object) -> None:
    assert parse_value(text, "x") == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=" + "[" * 3000, "line 1: more than 32 brackets are open"),
        ("rounds=" + "9" * 5000, "line 1: a number has more than 128 characters"),
        ("rounds={a" + ".a" * 100_000 + " = 1}", "line 1: a key has more than 16 parts"),
        ("a" + ".a" * 100_000 + "=1", "is not of the form table.key=value"),
        ("a" + ".a" * 15 + "=[1]", "tables and arrays are nested more than 16 deep"),
        ("x" * 100_000, "is not of the form table.key=value"),
        ("\ud800=1", "override '\\ud800=1' is not of the form"),
        ("data.root=\ud800", "a path must be valid UTF-8"),
        ('data.root="\\u0000"', "a path must be valid UTF-8"),
        ("data.name=\x1b[2J\n", "data.name = '\\x1b[2J': "),
        ("x\x1b=1", "override 'x\\x1b=1' is not of the form"),
    ],
)
def test_an_override_has_the_same_limits(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config.load(overrides=[override])
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


def test_the_deepest_settings_that_are_accepted_can_be_written_and_read_again() -> None:
    deepest = read_tables(None, ["algorithm.name=a.b:C", f"algorithm{'.a' * (MAX_DEPTH - 1)}=1"])
    config = Config.parse(deepest)
    assert Config.parse(parse_toml(config.to_toml(), "written")) == config
