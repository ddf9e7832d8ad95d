"""deploy/Dockerfile and deploy/compose.yaml, as far as that goes without a container engine."""

import fnmatch
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from brokers import ROOT
from deploy.conftest import Tool
from deploy.image import DOCKERFILE, image_environment, instructions
from deploy.written import check, mentioned
from monitor.config import DaemonSettings

COMPOSE = ROOT / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def test_hadolint_finds_nothing(tool: Tool) -> None:
    done = tool("hadolint", "--no-color", DOCKERFILE)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_not_root_and_starts_the_daemon_directly() -> None:
    last = dict(instructions())

    assert last["USER"] == "10001:10001"
    assert last["ENTRYPOINT"] == '["monitor"]'
    assert last["CMD"] == '["run"]'
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "/live" in last["HEALTHCHECK"]
    assert image_environment().keys() == {"MONITOR__API__HOST", "MONITOR__API__PORT"}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]

    assert lines[0] == "*"
    for name in [name for names in copied for name in names]:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in allowed), name
    assert allowed == {name for names in copied for name in names}


def the_torch_step() -> str:
    (step,) = (rest for word, rest in instructions() if word == "RUN" and "torch.txt" in rest)
    return step


@pytest.mark.parametrize("meant", ["cpu", "cuda"])
@pytest.mark.parametrize("index", ["", "file:///wheels"])
def test_the_image_is_made_with_the_torch_that_is_meant_or_not_at_all(meant: str, index: str, tmp_path: Path) -> None:
    """The step that installs torch, run here: pip only writes down what it is asked for, and the torch of this machine is found."""
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >asked\n')
    pip.chmod(0o755)
    (tmp_path / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_BUILD": meant, "TORCH_INDEX_URL": index}
    done = subprocess.run(["sh", "-c", the_torch_step()], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, check=False)

    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["install", "--no-deps", *(["--index-url", index] if index else []), "-r", "torch.txt"]
    assert re.fullmatch(r"torch==[\d.]+\n", (tmp_path / "torch.txt").read_text())
    here = "cuda" if torch.version.cuda else "cpu"
    if meant == here:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert f"pip found the {here} build of torch, not {meant}: say TORCH_INDEX_URL" in done.stderr


def test_what_compose_names_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert service["mem_limit"], name
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        for volume in service.get("volumes", []):
            outside, inside, *_ = volume.split(":")
            assert inside.startswith("/")
            assert (COMPOSE.parent / outside).exists() if outside.startswith("./") else outside in compose["volumes"], volume
        assert set(service.get("secrets", [])) <= compose["secrets"].keys()
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"], other
        for port in service.get("ports", []):
            assert port.startswith("${BIND:-127.0.0.1}:"), "nothing is open to the network unless asked"
    assert {service["image"].partition(":")[0] for service in services.values()} == {"plant-monitor", "apache/kafka", "eclipse-mosquitto"}
    assert (COMPOSE.parent / services["monitor"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["monitor"]["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert services["monitor"]["build"]["args"].keys() <= {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    assert int(services["monitor"]["stop_grace_period"].removesuffix("s")) >= DaemonSettings().grace + 20


def test_the_monitor_of_compose_finds_its_brokers_topics_and_files(compose: dict[str, Any], tmp_path: Path) -> None:
    text = (COMPOSE.parent / "compose" / "monitor.toml").read_text()
    check(text, image_environment(), tmp_path)

    written, services = tomllib.loads(text), compose["services"]
    made = re.findall(r"make (\S+)", services["topics"]["command"][0])
    tables = [*written["sources"].values(), *written["sinks"].values(), written["dead_letter"]]
    for table in tables:
        if table["kind"] == "kafka":
            inside = f"INSIDE://{table['bootstrap_servers']}"
            assert inside in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
            assert set(table.get("topics", [table.get("topic")])) <= set(made)
        else:
            assert table["url"] == "mqtt://mosquitto:1883"
    for path in mentioned(text):
        assert path.removeprefix("/run/secrets/") in services["monitor"]["secrets"] or path.startswith("/var/lib/monitor/")


def test_the_gpu_file_changes_what_compose_has(compose: dict[str, Any]) -> None:
    over = yaml.safe_load(COMPOSE.with_name("compose.gpu.yaml").read_text())["services"]

    assert over.keys() <= compose["services"].keys()
    assert over["monitor"]["build"]["args"] == {"TORCH_BUILD": "cuda"}
    detectors = tomllib.loads((COMPOSE.parent / "compose" / "monitor.toml").read_text())["detectors"]
    assert over["monitor"]["environment"] == {f"MONITOR__DETECTORS__{name.upper()}__DEVICE": "cuda" for name in detectors}


def test_the_scripts_in_compose_are_shell(compose: dict[str, Any]) -> None:
    scripts = [compose["services"]["topics"]["command"][0], compose["services"]["mosquitto"]["healthcheck"]["test"][1]]
    for script in scripts:
        done = subprocess.run(["sh", "-n", "-c", script.replace("$$", "$")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), shlex.quote(script)
