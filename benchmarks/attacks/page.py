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

from attacks.cells import ALGORITHMS, DIGITS, IID, MNIST, ROOT, TWO_CLASSES
from attacks.figure import draw
from attacks.outcomes import Outcomes
from attacks.results import RESULTS, Results
from attacks.tables import advice, best_rules, by_rule, defaults, parts, single_rules, skew, verdicts

PAGE = ROOT / "docs" / "attacks.md"
HOW_TO = ROOT / "docs" / "how-to" / "robust.md"
PICTURE = ROOT / "docs" / "attacks.png"
SCRIPT = "benchmarks/attacks/page.py"


def sections(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the tables of `PAGE` by the names of their places."""
    lines = list(lines)
    found = Outcomes(lines)
    algorithms = {
        f"attacks:{data}_{partition}_{algorithm}": by_rule(found, data, algorithm, partition, 2)
        for data, partition in ((DIGITS, IID), (DIGITS, TWO_CLASSES), (MNIST, IID), (MNIST, TWO_CLASSES))
        for algorithm in ALGORITHMS
    }
    return {
        "attacks:verdicts": verdicts(found),
        "attacks:best": best_rules(found),
        "attacks:single": single_rules(found),
        "attacks:defaults": defaults(found),
        "attacks:skew": skew(found),
        "attacks:parts": parts(found),
        **algorithms,
        "attacks:source": source(lines),
    }


def source(lines: list[Mapping[str, Any]]) -> str:
    """Say where the results come from."""
    if not lines:
        return "Nothing was measured yet."
    seeds = sorted({str(line["seed"]) for line in lines})
    commits = sorted({str(line["commit"]) for line in lines})
    versions, cpus = ({_text(line) for line in lines} for _text in (_versions, _cpu))
    path = RESULTS.relative_to(ROOT)
    return (
        f"{len(lines):,} runs, seeds {', '.join(seeds)}; feddkd at commits {', '.join(commits)}; "
        f"{'; '.join(sorted(versions))}; {'; '.join(sorted(cpus))}. From [`{path}`](../{path}): `python benchmarks/attacks/run.py`."
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
        write(PAGE, sections(lines), check=check, script=SCRIPT),
        write(HOW_TO, {"attacks:advice": advice(found)}, check=check, script=SCRIPT),
    ]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
