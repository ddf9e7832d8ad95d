"""deploy/kubernetes: what the kustomizations build is valid, holds together, and carries a monitor.toml that is right."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from brokers import ROOT
from deploy.image import image_environment
from deploy.kustomize import KustomizationError, Object, build
from deploy.written import check, mentioned
from monitor.registry import options_class

KUBERNETES = ROOT / "deploy" / "kubernetes"
BUILT = ["base", "overlays/gpu", "overlays/autoscale", "overlays/mqtt"]
NEWEST = kubernetes_validate.latest_version()
SCHEMA = json.loads(Path(__file__).with_name("keda.schema.json").read_text())


@pytest.fixture(params=BUILT)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return build(KUBERNETES / request.param)


def only(objects: list[Object], kind: str) -> Object:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def container(objects: list[Object]) -> Object:
    (found,) = only(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return found


def variables(objects: list[Object]) -> dict[str, str]:
    """What the daemon finds in its environment, in the pod monitor-0."""
    found = image_environment()
    for variable in container(objects)["env"]:
        given = variable.get("valueFrom", {})
        if "fieldRef" in given:
            assert given["fieldRef"] == {"fieldPath": "metadata.name"}
            found[variable["name"]] = "monitor-0"
        elif "resourceFieldRef" in given:
            assert given["resourceFieldRef"] == {"resource": "limits.cpu"}
            found[variable["name"]] = container(objects)["resources"]["limits"]["cpu"]
        else:
            found[variable["name"]] = variable["value"]
    return found


@pytest.mark.parametrize("version", [NEWEST, "1.31"])
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    core = [item for item in objects if not item["apiVersion"].startswith("keda.sh/")]
    assert {item["kind"] for item in core} == {"StatefulSet", "Service", "PersistentVolumeClaim", "PodDisruptionBudget", "ConfigMap"}
    for item in core:
        kubernetes_validate.validate(item, version, strict=True)  # an unknown kind, which the command warns of, raises too
    for item in objects:
        if item not in core:
            Draft202012Validator(SCHEMA).validate(item)


def test_a_wrong_object_would_be_found() -> None:
    built = build(KUBERNETES / "overlays" / "autoscale")
    container(built)["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(only(built, "StatefulSet"), NEWEST, strict=True)

    only(built, "ScaledObject")["spec"]["triggers"][0]["metadata"]["lagThreshold"] = 500  # KEDA takes text only
    assert list(Draft202012Validator(SCHEMA).iter_errors(only(built, "ScaledObject")))


def test_every_kustomization_and_every_file_is_used() -> None:
    """Each folder builds (or is built by one that does), and no manifest lies beside them unread."""
    used: set[Path] = set()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        written = yaml.safe_load(file.read_text())
        names = [*written.get("resources", []), *written.get("components", [])]
        names += [patch["path"] for patch in written.get("patches", []) if "path" in patch]
        names += [name for generator in written.get("configMapGenerator", []) for name in generator["files"]]
        used |= {file, *((file.parent / name).resolve() for name in names)}
    missing = [path for path in used if not path.exists()]
    assert missing == []
    folders = {path for path in used if path.is_dir()} | {KUBERNETES / name for name in BUILT}
    assert {file.parent for file in KUBERNETES.rglob("kustomization.yaml")} == folders
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} <= used


def test_a_patch_without_a_target_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{KUBERNETES / 'base'}]\npatches: [{{path: patch.yaml}}]\n"
    )
    (tmp_path / "patch.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: monitor}\nspec: {replicas: 3}\n")
    with pytest.raises(KustomizationError, match="no Deployment monitor"):
        build(tmp_path)


def test_names_lead_somewhere(objects: list[Object]) -> None:
    stateful = only(objects, "StatefulSet")["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"] == labels
    assert only(objects, "Service")["spec"]["selector"] == labels
    assert only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert stateful["serviceName"] == only(objects, "Service")["metadata"]["name"]
    pod = stateful["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claimed = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container(objects)["volumeMounts"]} == volumes.keys() | claimed
    assert volumes["config"]["configMap"]["name"] == only(objects, "ConfigMap")["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == only(objects, "PersistentVolumeClaim")["metadata"]["name"]
    for item in objects:
        if item["kind"] == "ScaledObject":
            assert item["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "monitor"}
            assert "replicas" not in stateful
            assert item["spec"]["triggers"][0]["authenticationRef"]["name"] == only(objects, "TriggerAuthentication")["metadata"]["name"]


def test_the_pod_is_restricted_and_drains_in_time(objects: list[Object]) -> None:
    pod, one = only(objects, "StatefulSet")["spec"]["template"]["spec"], container(objects)
    written = tomllib.loads(only(objects, "ConfigMap")["data"]["monitor.toml"])

    assert pod["terminationGracePeriodSeconds"] >= written["daemon"]["grace"] + 20
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001  # of the image
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert [one[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")] == ["/live", "/live", "/ready"]
    (port,) = one["ports"]
    assert str(port["containerPort"]) == variables(objects)["MONITOR__API__PORT"]
    assert only(objects, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_check_finds_no_mistake_in_its_configuration(objects: list[Object], tmp_path: Path) -> None:
    check(only(objects, "ConfigMap")["data"]["monitor.toml"], variables(objects), tmp_path)


def test_every_file_that_the_configuration_names_is_mounted(objects: list[Object]) -> None:
    mounts = container(objects)["volumeMounts"]
    writable = tuple(mount["mountPath"] + "/" for mount in mounts if not mount.get("readOnly"))
    paths = list(mentioned(only(objects, "ConfigMap")["data"]["monitor.toml"]))

    assert paths
    for path in paths:
        if path.startswith("/run/secrets/"):
            assert path.startswith("/run/secrets/monitor/")
        else:
            assert f"{path}/".startswith(writable), path
    assert {"name": "config", "mountPath": "/etc/monitor", "readOnly": True} in mounts


def sources(objects: list[Object]) -> Iterator[tuple[str, Any]]:
    written = tomllib.loads(only(objects, "ConfigMap")["data"]["monitor.toml"])
    yield from written["sources"].items()


def test_what_must_differ_from_pod_to_pod_does(objects: list[Object]) -> None:
    named = {variable["name"] for variable in container(objects)["env"] if "fieldRef" in variable.get("valueFrom", {})}
    for name, source in sources(objects):
        key = {"kafka": "group_instance_id", "mqtt": "client_id"}[source["kind"]]
        assert key in options_class("sources", source["kind"]).model_fields
        assert f"MONITOR__SOURCES__{name.upper()}__{key.upper()}" in named
        if source["kind"] == "mqtt" and only(objects, "StatefulSet")["spec"]["replicas"] > 1:
            assert source["share_group"]  # else every pod would score every picture


def test_keda_looks_at_what_the_daemon_reads() -> None:
    built = build(KUBERNETES / "overlays" / "autoscale")
    (trigger,) = only(built, "ScaledObject")["spec"]["triggers"]
    ((_, source),) = sources(built)

    asked = trigger["metadata"]
    assert (asked["bootstrapServers"], asked["consumerGroup"], [asked["topic"]]) == (
        source["bootstrap_servers"],
        source["group_id"],
        source["topics"],
    )
    assert asked["sasl"].replace("_", "-").upper() == source["sasl_mechanism"].replace("SHA-", "SHA")
    assert (asked["tls"], source["security_protocol"]) == ("enable", "SASL_SSL")


def test_a_gpu_is_asked_for_and_used() -> None:
    built = build(KUBERNETES / "overlays" / "gpu")

    assert container(built)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(built)["image"].endswith("-cuda")
    assert variables(built)["MONITOR__DETECTORS__BOTTLE_AE__DEVICE"] == "cuda"
