"""What a reader calls an algorithm; the configuration and CSV files keep its code name."""

from __future__ import annotations

from feddkd.algorithms import ALGORITHMS

CONTROL = "fedavg_sgd"


def spoken_name(code: str) -> str:
    """Return the name of an algorithm as papers write it: `FedDKD` for `feddkd`.

    Args:
        code: `algorithm.name` of a configuration; of an import path `package.module:Class`, which
            is not imported, the class comes first.
    """
    if code in ALGORITHMS:
        found = ALGORITHMS[code]
        return str(vars(found).get("spoken", found.__name__))
    module, _, name = code.rpartition(":")
    return f"{name} ({module})" if module and name else code


def rounds_phrase(rounds: int, fewest: int) -> str:
    """Say how many rounds a run has beside one that has the fewest."""
    factor, rest = divmod(rounds, fewest)
    return f"{rounds} rounds" if rest else f"{factor} \N{MULTIPLICATION SIGN} the rounds"
