"""What a client process imports: each module is loaded once for every process of a simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from pathlib import Path
import feddkd.client.process
from feddkd.client.simulated import Simulation, simulated_clients
from feddkd.config import Config
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors
config = Config.load(None, json.loads(sys.argv[1]))
clients = simulated_clients(Simulation(config, Path(sys.argv[2])), [0])
client = clients["client-0"]
start = Tensors(client.model_schema)
for name in ("local_train", "dkd_step"):
    client.carry_out(Task(ExchangeId("run", 1, 0, name, 0), start, evaluate=True))
print(json.dumps(sorted(sys.modules)))
"""

NOT_NEEDED = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "networkx",
    "matplotlib",
    "pandas",
    "rich",
    "typer",
    "torchmetrics",
    "torchvision",
)


def test_a_client_that_trains_and_distils_imports_no_compiler_and_nothing_for_people(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(["dkd.start=average"]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch.optim" in imported
    assert imported.isdisjoint(NOT_NEEDED), imported & set(NOT_NEEDED)
