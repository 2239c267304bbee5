"""deploy/kubernetes is what Kubernetes accepts: of the fields that its API knows, and as the restricted Pod Security Standard asks."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_schema
import pytest
import typer
import yaml
from doc_pages import ROOT
from test_docs_commands import context_of

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.name != "kustomization.yaml")
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
WORKLOADS = {"Job", "StatefulSet"}


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def built(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Build what `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return documents(done.stdout)


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for document in built() if document["kind"] in kinds]


def refused(document: dict[str, Any]) -> list[str]:
    pytest.importorskip("lightkube.models", reason="lightkube-models is not installed")
    return kubernetes_schema.problems(document)


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_a_file_has_no_field_that_kubernetes_does_not_know(file: Path) -> None:
    # A StatefulSet gets its selector and its labels from kustomize.
    for document in documents(file.read_text(encoding="utf-8")):
        if document["kind"] not in CUSTOM | WORKLOADS:
            assert refused(document) == []


def test_what_is_applied_has_no_field_that_kubernetes_does_not_know() -> None:
    for document in built():
        assert refused(document) == []
    names = {named(document) for document in built()}
    assert {"Job/server", "StatefulSet/site-a", "StatefulSet/site-b", "StatefulSet/site-c", "Service/server"} <= names


MISTAKES = {
    "a field that does not exist": (("spec", "restartPolice"), "Never", "Job.spec: JobSpec has no field restartPolice"),
    "one deep inside": (
        ("spec", "template", "spec", "containers", 0, "resources", "limit"),
        {},
        "Job.spec.template.spec.containers[0].resources: ResourceRequirements has no field limit",
    ),
    "a word for a number": (("spec", "backoffLimit"), "5", "Job.spec.backoffLimit: '5' is no int"),
    "a number for a word": (
        ("spec", "template", "spec", "containers", 0, "args", 3),
        600,
        "Job.spec.template.spec.containers[0].args[3]: 600 is no str",
    ),
    "a boolean for a number": (("spec", "parallelism"), True, "Job.spec.parallelism: True is no int"),
    "a thing for a list": (
        ("spec", "template", "spec", "volumes"),
        {"name": "x"},
        "Job.spec.template.spec.volumes: {'name': 'x'} is no list",
    ),
    "a missing name": (
        ("spec", "template", "spec", "containers", 0),
        {"image": "x"},
        "Job.spec.template.spec.containers[0]: Container needs name",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    path, value, line = MISTAKES[mistake]
    (job,) = copy.deepcopy(of_kind("Job"))
    assert refused(job) == []
    place: Any = job
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert refused(job) == [line]


def test_a_field_whose_name_python_keeps_for_itself_and_a_port_by_name_or_number_are_known() -> None:
    rule = {"from": [{"podSelector": {}}], "ports": [{"port": 9464}, {"port": "metrics"}]}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {"podSelector": {}, "ingress": [rule]}}
    assert refused(policy) == []
    rule["ports"] = [{"port": 1.5}]
    assert len(refused(policy)) == 1


@pytest.mark.parametrize("kind", sorted(WORKLOADS))
def test_pods_are_restricted(kind: str) -> None:
    for workload in of_kind(kind):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written == {"/state", "/tmp"}


@pytest.mark.parametrize("kind", sorted(WORKLOADS))
def test_what_pods_refer_to_exists(kind: str) -> None:
    config_maps = {document["metadata"]["name"] for document in of_kind("ConfigMap")}
    claims = {document["metadata"]["name"] for document in of_kind("PersistentVolumeClaim")}
    for workload in of_kind(kind):
        template = workload["spec"]["template"]
        (container,) = template["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys() | claimed
        assert volumes["config"]["configMap"]["name"] in config_maps
        assert volumes["tls"]["secret"]["secretName"] == f"{workload['metadata']['name']}-tls"
        if kind == "Job":
            assert volumes["state"]["persistentVolumeClaim"]["claimName"] in claims
        else:
            assert workload["spec"]["serviceName"] == workload["metadata"]["name"]
            assert workload["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_every_service_and_policy_selects_a_pod_and_its_ports() -> None:
    pods = [workload["spec"]["template"] for workload in of_kind(*WORKLOADS)]

    def selected(labels: dict[str, str]) -> list[dict[str, Any]]:
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    for service in of_kind("Service"):
        (pod,) = selected(service["spec"]["selector"])
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        assert service["spec"]["clusterIP"] == "None"
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for policy in of_kind("NetworkPolicy"):
        assert selected(policy["spec"]["podSelector"].get("matchLabels", {})), named(policy)
    for document in documents((FOLDER / "monitoring" / "service-monitor.yaml").read_text()):
        labels = document["spec"]["selector"]["matchLabels"]
        services = [service for service in of_kind("Service") if labels.items() <= service["metadata"]["labels"].items()]
        assert services
        names = {port["name"] for service in services for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in document["spec"]["endpoints"]} <= names


@pytest.mark.parametrize("kind", sorted(WORKLOADS))
def test_the_arguments_are_ones_that_the_program_knows(kind: str) -> None:
    for workload in of_kind(kind):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        given = {"SITE": workload["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/instance", "")}
        given |= {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
        arguments = container["args"]
        for name, value in given.items():
            arguments = [word.replace(f"$({name})", value) for word in arguments]
        assert not any("$(" in word for word in arguments)
        context: typer.Context = context_of(arguments)
        assert Path("/state") in [context.params["state"], context.params["state"].parent]
        if kind == "StatefulSet":
            assert context.params["client_id"] == workload["metadata"]["name"]


def test_a_server_that_is_configured_wrongly_is_not_tried_again() -> None:
    (job,) = of_kind("Job")
    fails, ignores = job["spec"]["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"]["values"] == [2]
    assert ignores["action"] == "Ignore"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert "selector" not in job["spec"]  # Kubernetes makes one that is unique


def test_every_file_of_a_secret_is_one_that_the_page_puts_there() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    given = set(re.findall(r"--from-file=([\w.]+)=", page))
    for workload in of_kind(*WORKLOADS):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        read = {word.rpartition("/")[2] for word in container["args"] if "/run/secrets/feddkd/" in word}
        assert read <= given


def test_the_rules_are_those_of_prometheus() -> None:
    subprocess.run([ROOT / "scripts" / "prometheus-rule", "--check"], check=True, capture_output=True)
    (rule,) = documents((FOLDER / "monitoring" / "prometheus-rule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    source = [
        group
        for file in sorted((ROOT / "deploy/prometheus/rules").glob("*.rules.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == source
