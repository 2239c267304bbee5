"""The virtual cables of benchmarks/link_check.py. Root, and a kernel with network namespaces and tbf."""

import subprocess
import sys
from pathlib import Path

import pytest

from feddkd.observability.wall_time import Link

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from namespaces import cabled


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.root
def test_each_client_has_a_cable_of_its_own_that_is_limited_both_ways_and_gone_in_the_end() -> None:
    before = said("ip", "netns", "list")
    with cabled(Link(4e6, 50e6, 0.0), 2) as ((server, address), *clients):
        assert address == "0.0.0.0"
        assert [where for _, where in clients] == ["10.99.0.1", "10.99.1.1"]
        limits = said(*server, "tc", "qdisc", "show").splitlines()
        assert sum("tbf" in line and "rate 50Mbit" in line for line in limits) == 2
        for client, _ in clients:
            assert "rate 4Mbit" in said(*client, "tc", "qdisc", "show")
    assert said("ip", "netns", "list") == before
