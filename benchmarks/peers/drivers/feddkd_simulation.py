"""The FedAvg work through feddkd's Python interface, on one of its engines.

python feddkd_simulation.py WORK.npz OUT.npz ENGINE SETTING ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file
from simulation_work import Work, save

import feddkd
from feddkd.config import Config


def main() -> None:
    path, out, engine, *settings = sys.argv[1:]
    folder = Path(out).parent
    save_file(Work(path).weights, folder / "initial.safetensors")
    own = [f"data.root={Path(path).parent}", f"model.init={folder / 'initial.safetensors'}"]
    ends_s: list[float] = []
    config = Config.load(overrides=[*settings, *own])
    record = folder / "run"
    feddkd.run(config, callbacks=lambda _: ends_s.append(time.perf_counter()), engine=engine, out=record, progress=False)  # type: ignore[arg-type]
    save(out, ends_s, load_file(record / "model.safetensors"))


if __name__ == "__main__":
    main()
