"""Write the tables of docs/attacks.md and docs/how-to/robust.md, and draw the picture; with
`--check`, only compare the tables.

python benchmarks/attacks/page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench.pages import write

from attacks.cells import ROOT
from attacks.figure import draw
from attacks.outcomes import Outcomes
from attacks.results import RESULTS, Results
from attacks.sections import not_measured, sections_of
from attacks.tables import advice
from attacks.verdicts import choice, verdicts

PAGE = ROOT / "docs" / "attacks.md"
HOW_TO = ROOT / "docs" / "how-to" / "robust.md"
PICTURE = ROOT / "docs" / "attacks.png"
SCRIPT = "benchmarks/attacks/page.py"


def places(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return what is written into `PAGE`, by the names of the places."""
    lines = list(lines)
    found = Outcomes(lines)
    sections = sections_of(found)
    return {
        "attacks:verdicts": verdicts(found),
        **{name: section.written() for name, section in sections.items()},
        "attacks:not_measured": not_measured(sections),
        "attacks:source": source(lines),
    }


def source(lines: list[Mapping[str, Any]]) -> str:
    """Say where the results come from; each table says its seeds and commits."""
    if not lines:
        return "Nothing was measured yet."
    versions, cpus = ({_text(line) for line in lines} for _text in (_versions, _cpu))
    path = RESULTS.relative_to(ROOT)
    return (
        f"{len(lines):,} runs; {'; '.join(sorted(versions))}; {'; '.join(sorted(cpus))}. "
        f"From [`{path}`](../{path}): `python benchmarks/attacks/run.py`."
    )


def _versions(line: Mapping[str, Any]) -> str:
    return f"torch {line['versions']['torch']}"


def _cpu(line: Mapping[str, Any]) -> str:
    return f"{line['cpu']} ({line['cpu_capability']})"


def main() -> int:
    """Rewrite the pages and draw the picture, or compare the pages."""
    check = "--check" in sys.argv[1:]
    lines = list(Results())
    found = Outcomes(lines)
    if lines and not check:
        draw(found, PICTURE)
    right = [
        write(PAGE, places(lines), check=check, script=SCRIPT),
        write(HOW_TO, {"attacks:advice": advice(found), "attacks:choice": choice(found)}, check=check, script=SCRIPT),
    ]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
