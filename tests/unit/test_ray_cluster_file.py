"""The cluster file is one that Ray's own launcher accepts."""

from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "ray" / "cluster.yaml"


def test_ray_accepts_the_cluster_file() -> None:
    pytest.importorskip("ray")
    yaml = pytest.importorskip("yaml")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


def test_every_machine_of_the_cluster_asks_for_a_token() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load(FILE.read_text())
    starts = [line for kind in ("head", "worker") for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
