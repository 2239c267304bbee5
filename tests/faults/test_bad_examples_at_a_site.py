"""A site whose files go bad in the middle of a run stops with their name, and the others go on without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation
from processes import Process

from feddkd.cli import EXIT_USAGE

VICTIM = "client-1"

SCANS = f'''
import sys
from pathlib import Path

from torch.utils.data import Dataset

from feddkd.data.digits import load_digits


class Scans(Dataset):
    """Digits in files, which one site cannot read any more once the server has recorded so many exchanges."""

    def __init__(self):
        images, labels = load_digits()
        self.images, self.labels = images[:600], labels[:600]
        self.paths = [f"/scans/{{number}}.png" for number in range(600)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        recorded = sum(file.read_text().count("\\n") for file in Path("server-state").glob("*/exchanges.jsonl"))
        if {VICTIM!r} in sys.argv and recorded >= int(Path("good_for").read_text()):
            raise OSError("the share is gone")
        return self.images[number], int(self.labels[number])


def scans(root, train):
    return Scans()
'''

OVERRIDES = (
    *CONFIGS["fedavg"],
    "data.name=scans:scans",
    "data.input_shape=[1,8,8]",
    "data.num_classes=10",
    "scheduler.min_clients=2",
    "scheduler.reconnect_grace_s=0",
)


@pytest.mark.parametrize(
    ("exchanges", "reported"),
    [(1, {"local_train": [3, 2], "deliver": [2]}), (2, {"local_train": [3, 3], "deliver": [2]})],
    ids=["in the second round", "when the final model is delivered"],
)
def test_a_site_whose_files_go_bad_stops_with_their_name_and_the_others_finish(
    exchanges: int, reported: dict[str, list[int]], tmp_path: Path
) -> None:
    (tmp_path / "scans.py").write_text(SCANS)
    (tmp_path / "good_for").write_text(str(exchanges))
    with Federation(tmp_path, OVERRIDES) as federation:
        federation.restart(SERVER)
        for name in federation.names:
            federation.put(Process(name, [*federation.command(name), "-o", "data.name=scans:scans"], tmp_path))
        victim = federation.processes[VICTIM]
        assert victim.wait() == EXIT_USAGE
        assert [federation.processes[name].wait() for name in (SERVER, "client-0", "client-2")] == [0, 0, 0]
        said = victim.log.read_text().splitlines()[-1]
        assert said.startswith(f"feddkd: {VICTIM}: ")
        assert "cannot use /scans/" in said
        assert "OSError: the share is gone" in said
        assert "more than data.max_bad_share = 0.01 accepts" in said
        history = federation.history()
    for name, counts in reported.items():
        assert [line["clients_reported"] for line in history.exchanges if line["exchange"] == name] == counts
    assert history.summary is not None
    assert list(history.summary["not_delivered"]) == [VICTIM]
    told = next(line["clients_missing"] for line in history.exchanges if line["clients_missing"])
    assert told == {VICTIM: "BadExamplesError: its data cannot be read; the client's own log says why"}


def test_a_run_that_needs_the_site_waits_until_its_files_are_mended(tmp_path: Path) -> None:
    (tmp_path / "scans.py").write_text(SCANS)
    (tmp_path / "good_for").write_text("1")
    with Federation(tmp_path, (*OVERRIDES, "scheduler.min_clients=3")) as federation:
        federation.restart(SERVER)

        def start(name: str) -> Process:
            process = Process(name, [*federation.command(name), "-o", "data.name=scans:scans"], tmp_path)
            federation.put(process)
            return process

        processes = [start(name) for name in federation.names]
        assert processes[federation.names.index(VICTIM)].wait() == EXIT_USAGE
        (tmp_path / "good_for").write_text("1000")
        start(VICTIM)
        assert [federation.processes[name].wait() for name in (SERVER, *federation.names)] == [0, 0, 0, 0]
        history = federation.history()
    assert history.summary is not None
    assert history.summary["not_delivered"] == {}
