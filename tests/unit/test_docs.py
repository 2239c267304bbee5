"""What the documents say of the code is so: code, configuration and links."""

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doc_pages import ALL_PAGES, ROOT, blocks_of, name_of, text_of
from PIL import Image

from feddkd.algorithms.feddkd import FedDKD
from feddkd.data.examples import Reading, StreamedExamples
from feddkd.data.image_folder import ImageFiles

SHOWN = {
    "FedDKD.run_round": textwrap.dedent(inspect.getsource(FedDKD.run_round)),
    "examples/my_algorithm.py": (ROOT / "examples" / "my_algorithm.py").read_text(encoding="utf-8"),
}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))) + re.findall(r'(?:src|href)="([^"]+)"', text_of(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("name", SHOWN)
def test_code_that_is_shown_is_the_code(name: str) -> None:
    """A block of code that follows `<!-- code: NAME -->` is the source of NAME, to the letter."""
    pattern = rf"<!-- code: {re.escape(name)} -->\n```python\n(.*?)^```"
    blocks = [block for page in ALL_PAGES for block in re.findall(pattern, text_of(page), re.MULTILINE | re.DOTALL)]
    assert blocks
    assert set(blocks) == {SHOWN[name]}


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("RGB", 1)])
@pytest.mark.parametrize("size", [(7, 5), (40, 90), (16, 12)])
def test_an_image_that_a_reader_prepares_is_what_a_model_is_trained_on(
    mode: str, channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    file = tmp_path / "image.png"
    Image.fromarray(pixels.squeeze()).save(file)
    (block,) = (block for block in blocks_of(ROOT / "docs" / "how-to" / "own-data.md") if block.file == "prepare.py")
    exec(block.text, page := dict[str, Any]())
    shape = (channels, 12, 16)
    label = torch.tensor([0])
    trained_on, _ = StreamedExamples(ImageFiles([str(file)], label, shape), label, Reading()).gather(torch.tensor([0]))
    assert torch.equal(page["prepare"](str(file), shape), trained_on[0])


def test_configuration_page_is_up_to_date() -> None:
    subprocess.run([ROOT / "scripts" / "config_docs", "--check"], env=os.environ | {"PYTHON": sys.executable}, check=True)


def test_the_numbers_on_the_page_of_results_are_those_of_the_result_files() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tests_that_the_page_of_faults_names_exist() -> None:
    text = text_of(ROOT / "docs" / "faults.md")
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    files, names = set(re.findall(r"`((?:faults|unit|integration|contract)/\w+\.py)`", text)), set(re.findall(r"`(test_\w+)`", text))
    assert len(files) > 10
    assert len(names) > 10
    assert [file for file in sorted(files) if not (ROOT / "tests" / file).exists()] == []
    assert [name for name in sorted(names) if f"def {name}(" not in sources] == []
