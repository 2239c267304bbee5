"""What the site adds to MkDocs: pages of the repository, sections of other pages, lists, and generated reference."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import typer
from doc_pages import ROOT, text_of

sys.path.insert(0, str(ROOT / "scripts" / "docs_site"))

from command_line import with_command_line
from content import with_linked_pictures, with_whole_numbers
from links import RepositoryLinks
from lists import with_wide_lists
from repository import Repository
from sections import section, with_sections

from feddkd import cli
from feddkd.observability.record_lines import ExchangeLine, RoundLine, Summary

PAGE_OF = {"project/changes.md": "CHANGES.md", "examples/one.md": "examples/one/README.md"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    files = {
        "docs/guide.md": "[code](../package/code.py), [folder](../package/), [rows](../rows.jsonl), [changes](../CHANGES.md)",
        "docs/deep/page.md": "[guide](../guide.md)",
        "package/code.py": '"""Does | one thing."""\n',
        "rows.jsonl": "{}\n",
        "CHANGES.md": "[guide](docs/guide.md#part), [none](docs/none.md)",
        "examples/one/README.md": "[data](../../package/other.py)",
        "package/other.py": "",
        "package/unknown.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "package/digits.npz").write_bytes(b"\x93\xf9\x00")
    found = Repository(tmp_path)
    found.begin(PAGE_OF)
    return found


@pytest.mark.parametrize(
    ("page", "link", "resolved"),
    [
        ("guide.md", "../package/code.py", "source/package/code.py.md"),
        ("guide.md", "../package/", "source/package/index.md"),
        ("guide.md", "../rows.jsonl", "source/rows.jsonl"),
        ("guide.md", "../CHANGES.md#old", "project/changes.md#old"),
        ("deep/page.md", "../guide.md", "../guide.md"),
        ("project/changes.md", "docs/guide.md#part", "../guide.md#part"),
        ("examples/one.md", "../../package/other.py", "../source/package/other.py.md"),
        ("source/package/index.md", "code.py", "code.py.md"),
        ("guide.md", "#here", "#here"),
        ("guide.md", "https://arxiv.org/abs/2205.00706", "https://arxiv.org/abs/2205.00706"),
        ("guide.md", "../absent.py", "../absent.py"),
    ],
)
def test_a_link_to_a_file_leads_to_its_page(repository: Repository, page: str, link: str, resolved: str) -> None:
    links = RepositoryLinks(repository)
    links.page = page
    assert links.resolved(link) == resolved


def test_files_that_are_linked_to_and_files_of_linked_folders_have_pages(repository: Repository) -> None:
    pages = repository.pages()
    assert "````python\n" in str(pages["source/package/code.py.md"])
    assert "| [code.py](code.py) | Does \\| one thing. |" in str(pages["source/package/index.md"])
    assert "source/package/unknown.py.md" in pages
    assert pages["source/rows.jsonl"] == b"{}\n"
    assert pages["source/package/digits.npz"] == b"\x93\xf9\x00"
    assert pages["project/changes.md"] == (repository.root / "CHANGES.md").read_text()


PAGE = """\
# Title

## One

1. [a link](other.md#x) and [here](#two)

```text
## Two
```

### Below

more

## Two

end
"""


def test_a_section_ends_at_the_next_heading_of_its_level() -> None:
    found = section(PAGE, "one")
    assert found is not None
    assert found.startswith("1. [a link]")
    assert found.endswith("### Below\n\nmore")
    assert section(PAGE, "two") == "end"
    assert section(PAGE, "three") is None


def test_a_section_is_shown_with_links_that_still_lead_where_they_led(tmp_path: Path) -> None:
    (tmp_path / "source.md").write_text(PAGE)
    shown = with_sections("before\n\n<!-- section -->[One](../source.md#one)\n\nafter", "deep/page.md", tmp_path)
    assert "[a link](../other.md#x) and [here](../source.md#two)" in shown
    assert shown.startswith("before\n\n1. ")
    with pytest.raises(ValueError, match=r"deep/page\.md: source\.md has no section #nine"):
        with_sections("<!-- section -->[Nine](../source.md#nine)", "deep/page.md", tmp_path)


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("- a\n  b\n- c", "-   a\n    b\n-   c"),
        ("1. a\n\n       code\n\n   b\n2. c", "1.  a\n\n        code\n\n    b\n\n2.  c"),
        ("- a\n  - b\n    c", "-   a\n    -   b\n        c"),
        ("text:\n- a", "text:\n\n-   a"),
        ("- a\nwrapped\n\nnew", "-   a\n    wrapped\n\nnew"),
        ("```\n- a\n```", "```\n- a\n```"),
        ("- a\n\n  ```\n  - b\n  ```", "-   a\n\n    ```\n    - b\n    ```\n"),
        ("**bold** and -1\n| - | - |", "**bold** and -1\n| - | - |"),
        ("it costs\n20. May", "it costs\n20. May"),
    ],
)
def test_lists_are_indented_by_four(text: str, wide: str) -> None:
    assert with_wide_lists(text).rstrip() == wide.rstrip()


def test_the_reference_of_the_command_line_has_every_command_and_option() -> None:
    page = with_command_line("# Title\n\n<!-- command line -->\n")
    for heading in ("## feddkd run", "## feddkd server", "### feddkd data show", "### feddkd config check"):
        assert f"\n{heading}\n" in page
    program = typer.main.get_command(cli.app)
    server = program.get_command(program.make_context("feddkd", ["server"]), "server")  # type: ignore[attr-defined]
    options = {option for parameter in server.params for option in parameter.opts if option.startswith("-")}
    assert {"--listen", "--tls-client-ca"} <= options
    for option in options:
        assert f"`{option}`" in page
    assert "| `--listen` `HOST:PORT` | required |" in page


def test_the_page_of_exit_codes_has_those_of_the_program() -> None:
    table = section(text_of(ROOT / "docs" / "operations.md"), "exit-codes")
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert set(map(int, re.findall(r"^\| (\d+) \|", str(table), re.MULTILINE))) == {0} | codes


def test_the_page_of_records_has_every_field() -> None:
    text = str(section(text_of(ROOT / "docs" / "operations.md"), "what-a-run-leaves-behind"))
    named = set(re.findall(r"`(\w+)`", text))
    fields = {field for line in (ExchangeLine, RoundLine, Summary) for field in line.model_fields}
    assert fields - named == set()


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = text_of(ROOT / "mkdocs.yml")
    assert "\n  font: false\n" in settings
    assert "//" not in settings
    assert "//" not in text_of(ROOT / "docs" / "assets" / "site.css")


def test_a_mean_stays_on_one_line_with_its_deviation_and_a_sentence_does_not() -> None:
    sentence = f"<td>{'words ' * 8}± 1</td>"
    html = f'<tr><td>a</td><td style="x">97.6 ± 0.2 (n=6)</td><td><strong>1 ± 0</strong></td>{sentence}</tr>'
    marked = f'<tr><td>a</td><td style="x" class="whole">97.6 ± 0.2 (n=6)</td><td class="whole"><strong>1 ± 0</strong></td>{sentence}</tr>'
    assert with_whole_numbers(html) == marked


def test_a_picture_leads_to_its_full_size() -> None:
    picture = '<img alt="Accuracy" src="../wide.png" />'
    linked = f'<p><a class="picture" href="../wide.png" title="full size">{picture}</a></p>'
    assert with_linked_pictures(f"<p>{picture}</p>") == linked
    assert with_linked_pictures(linked) == linked
