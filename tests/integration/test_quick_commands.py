"""Help, and whatever fails before a configuration is validated, answer at once: they do not import torch, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "--help": 0,
    "-h": 0,
    "--version": 0,
    "version": 0,
    "new --help -v": 0,
    "compare -v --help": 0,
    "report -v --help": 0,
    "run --help": 0,
    "run -h -v": 0,
    "-v run --help": 0,
    "server --help": 0,
    "client --help": 0,
    "compare --help": 0,
    "report --help": 0,
    "status --help": 0,
    "replay --help": 0,
    "data show --help": 0,
    "config show --help": 0,
    "bench transport --help": 0,
    "new my_project --sites north,south": 0,
    "new My-Project": 2,
    "runn": 2,
    "run --roundz 3": 2,
    "run nowhere.toml": 2,
    "server": 2,
    "server nowhere.toml --listen :0 --state s": 2,
    "client --server nowhere --id a --state s": 2,
    "report nowhere": 1,
    "status nowhere": 1,
    "replay nowhere": 1,
    "config show nowhere.toml": 2,
}
PROGRAM = """
import json, sys
from feddkd.cli import main
found = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["feddkd", *command.split()]
    try:
        main()
    except SystemExit as end:
        found[command] = int(end.code or 0)
    if "torch" in sys.modules:
        found[command] = "imports torch"
        break
print(json.dumps(found))
"""


def test_help_and_typing_errors_do_not_import_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(COMMANDS))], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout.splitlines()[-1]) == COMMANDS, done.stderr


IMPORTS = """
import sys
from feddkd.config import Config
assert "torch" not in sys.modules
Config()
print(*(name.removeprefix("feddkd.") for name in sys.modules if name.startswith("feddkd.")))
"""


def test_a_configuration_imports_algorithms_and_nothing_else_that_computes() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stdout.split())
    assert "algorithms.feddkd" in imported
    assert imported.isdisjoint({"compression.eden", "models.mlp", "transport.server", "engines.grpc"})
