"""What deploy/compose.yaml promises: nothing runs as root, writes outside its volumes, or has a secret in its environment."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_file
import pytest
import yaml
from doc_pages import ROOT

from feddkd import __version__
from feddkd.config import Config

DEPLOY = ROOT / "deploy"
SERVICES: dict[str, dict[str, Any]] = compose_file.read()["services"]
OURS = {name: service for name, service in SERVICES.items() if compose_file.image_of(service) == compose_file.OUR_IMAGE}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert not service.get("network_mode")


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_the_environment(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search("password|secret|token|key", key, re.IGNORECASE):
            assert key.endswith("__FILE"), key
            assert value.startswith("/run/secrets/"), value


@pytest.mark.parametrize("name", SERVICES)
def test_only_named_volumes_are_written_to_and_all_exist(name: str) -> None:
    made_by_the_operator = ("./certs/",)
    volumes = compose_file.read()["volumes"]
    for volume in SERVICES[name].get("volumes", ()):
        source, _, *options = volume.split(":")
        if source.startswith("."):
            assert options == ["ro"], volume
            assert source.startswith(made_by_the_operator) or (DEPLOY / source).exists(), volume
        else:
            assert source in volumes, volume


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_has_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+(\.\d+)+", tag)
    if name in OURS:
        assert tag == __version__


def test_ports_are_published_on_loopback_but_for_the_servers() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert published.pop("server") == ["50061:50061"]
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports), ports


def test_a_finished_run_is_not_started_again_and_a_site_is() -> None:
    assert SERVICES["server"]["restart"] == "on-failure:5"
    for name, service in SERVICES.items():
        if name != "server":
            assert service["restart"] == "unless-stopped"
    for name in OURS.keys() - {"server"}:
        assert "--stay" in OURS[name]["command"]


def test_the_servers_configuration_names_the_sites_of_the_file() -> None:
    config = Config.load(DEPLOY / "federation" / "server.toml")
    assert isinstance(config.scheduler.clients, list | tuple)
    assert set(config.scheduler.clients) == OURS.keys() - {"server"}
    Config.load(DEPLOY / "federation" / "site.toml")
    for name in OURS.keys() - {"server"}:
        assert f"--id={name}" in OURS[name]["command"]


def test_prometheus_scrapes_each_service_of_ours() -> None:
    targets = [group for file in (DEPLOY / "compose" / "targets").glob("*.yml") for group in yaml.safe_load(file.read_text())]
    assert {target for group in targets for target in group["targets"]} == {f"{name}:9464" for name in OURS}


def test_compose_accepts_the_file() -> None:
    known = [[name, *plugin] for name, *plugin in (("docker-compose",), ("docker", "compose")) if shutil.which(name)]
    compose = next((each for each in known if subprocess.run([*each, "version"], capture_output=True, check=False).returncode == 0), None)
    if compose is None:
        pytest.skip("docker-compose is not installed, nor Docker's plugin compose")
    subprocess.run([*compose, "--file", str(compose_file.FILE), "config", "--quiet"], check=True, cwd=Path("/"))
