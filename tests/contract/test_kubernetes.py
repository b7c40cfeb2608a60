"""deploy/kubernetes holds what it promises, as far as that shows without a cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from farm.settings import Settings
from farm.specs import gpus
from farm.specs.monitoring import QUEUE_AGE, RUNNING_JOBS
from tests import farm_lines

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.32"
SETS = ("base", "gpu-workers", "keda")
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


OBJECTS = [one for path in FILES for one in documents(path.read_text())]
DEPLOYMENTS = [one for one in OBJECTS if one["kind"] == "Deployment"]
PRODUCTS = sorted(path.parent for path in FOLDER.glob("gpu-workers/*/kustomization.yaml"))
PRODUCTS = [path for path in PRODUCTS if path.name != "template"]


def containers(deployment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pod = deployment["spec"]["template"]["spec"]
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


deployments = pytest.mark.parametrize(
    "deployment", DEPLOYMENTS, ids=lambda one: one["metadata"]["name"]
)


def check(one: dict[str, Any]) -> None:
    """Against Kubernetes's own schemas; KEDA's objects have none there."""
    if not one["apiVersion"].startswith("keda.sh/"):
        kubernetes_validate.validate(one, VERSION, strict=True)


def test_there_are_a_deployment_of_each_part():
    names = {one["metadata"]["name"] for one in DEPLOYMENTS}
    assert names == {"api", "cpu-worker", "gpu-worker", "flower"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_objects_are_valid(path):
    for one in documents(path.read_text()):
        check(one)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("name", SETS)
def test_kustomize_makes_valid_objects(name):
    made = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / name)], capture_output=True, text=True, check=False
    )
    if "unknown field" in made.stderr:
        pytest.skip("this kubectl is too old for labels")
    assert made.returncode == 0, made.stderr
    found = documents(made.stdout)
    assert found
    for one in found:
        check(one)
        assert one["metadata"].get("namespace", "engine-farm") == "engine-farm"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("kustomization.yaml")), ids=str)
def test_a_set_names_files_and_folders_that_exist(path):
    for resource in yaml.safe_load(path.read_text())["resources"]:
        assert (path.parent / resource).exists()


@deployments
def test_a_container_has_no_rights_and_writes_to_its_own_folders_alone(deployment):
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers(deployment):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {one["mountPath"] for one in container["volumeMounts"]}
        assert {"/tmp", named("ConfigMap", "farm")["data"]["FARM_HOME"]} <= mounted


@deployments
def test_a_container_has_bounds_and_knows_database_broker_and_store(deployment):
    for container in containers(deployment):
        assert "memory" in container["resources"]["limits"]
        assert container["envFrom"] == [
            {"configMapRef": {"name": "farm"}},
            {"secretRef": {"name": "farm"}},
        ]


@deployments
def test_a_command_is_one_of_farms_with_options_that_exist(deployment):
    for container in containers(deployment):
        program, *words = container["command"]
        assert program == "farm"
        farm_lines.parse(words)


@deployments
def test_a_worker_has_the_time_to_give_its_jobs_back(deployment):
    from workers.__main__ import _GRACE_S

    if "worker" in deployment["metadata"]["name"]:
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > _GRACE_S


@pytest.mark.parametrize("name", ["api", "flower"])
def test_a_service_reaches_its_pods_at_the_port_they_listen_on(name):
    service, deployment = named("Service", name), named("Deployment", name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    [offered] = service["spec"]["ports"]
    command = container["command"]
    assert offered["targetPort"] == port["name"]
    assert port["containerPort"] == int(command[command.index("--port") + 1]) == offered["port"]
    hosts = Settings(hosts=named("ConfigMap", "farm")["data"]["FARM_HOSTS"]).hosts
    assert {name, f"{name}.engine-farm", f"{name}.engine-farm.svc"} <= set(hosts)


def test_every_setting_is_one():
    fields = {f"FARM_{field.upper()}" for field in Settings.model_fields}
    assert set(named("ConfigMap", "farm")["data"]) <= fields


def test_the_api_is_replaced_without_a_gap():
    api = named("Deployment", "api")
    assert api["spec"]["replicas"] >= 2
    assert api["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    [migrate] = api["spec"]["template"]["spec"]["initContainers"]
    assert migrate["command"] == ["farm", "db", "upgrade"]


@pytest.mark.parametrize("path", PRODUCTS, ids=lambda path: path.name)
def test_a_products_node_label_is_of_its_gpu(path):
    [patch] = yaml.safe_load((path / "kustomization.yaml").read_text())["patches"]
    [step] = yaml.safe_load(patch["patch"])
    assert step["path"] == "/spec/template/spec/nodeSelector"
    # GPU feature discovery puts dashes for the spaces in NVML's name.
    label = step["value"]["nvidia.com/gpu.product"]
    assert gpus.product_of(label.replace("-", " ")) == path.name


def test_a_gpu_worker_has_one_gpu():
    [container] = named("Deployment", "gpu-worker")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_keda_scales_each_products_workers_by_its_queues():
    scaled = [one for one in OBJECTS if one["kind"] == "ScaledObject"]
    assert sorted(one["metadata"]["name"] for one in scaled) == [
        f"gpu-worker-{path.name}" for path in PRODUCTS
    ]
    for one in scaled:
        assert one["spec"]["scaleTargetRef"]["name"] == one["metadata"]["name"]
        # Never down from several: Kubernetes may take the one that works.
        behaviour = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behaviour["scaleDown"]["selectPolicy"] == "Disabled"
        tag = one["metadata"]["name"].removeprefix("gpu-worker-")
        queries = [trigger["metadata"]["query"] for trigger in one["spec"]["triggers"]]
        capability = gpus.compute_capability(tag)
        for query, metric in zip(queries, (QUEUE_AGE, RUNNING_JOBS), strict=True):
            assert f'{metric.name}{{gpu=~"{tag}|{capability}"}}' in query
