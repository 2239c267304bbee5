"""How processes that move models get their memory: counted in page faults, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

CHUNKS = """
    import resource
    {before}
    chunk = bytes(1 << 20)

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def exchange():
        return [chunk + b"x" for _ in range(8)]

    exchange()
    began = faults()
    for _ in range(20):
        exchange()
    print(faults() - began)
"""
"""Takes and frees the memory of eight chunks at a time, 20 times; prints how often the system had to provide a page."""

PAGES_OF_AN_EXCHANGE = 8 * 256


def printed(code: str, **environment: str) -> str:
    """What a new process prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=inherited | environment, check=True, capture_output=True, text=True, timeout=100).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_the_memory_of_chunks_is_used_again() -> None:
    kept = int(printed(CHUNKS.format(before="from feddkd.memory import return_large_blocks; return_large_blocks()")))
    returned = int(printed(CHUNKS.format(before=""), MALLOC_MMAP_THRESHOLD_="131072"))
    assert kept < PAGES_OF_AN_EXCHANGE
    assert returned > 10 * PAGES_OF_AN_EXCHANGE


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")], ids=["default", "off"])
def test_torch_asks_for_huge_pages_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    code = "import os, feddkd.tensors; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    assert printed(code, **given) == expected
