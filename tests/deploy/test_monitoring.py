"""deploy/prometheus and deploy/grafana: valid, tested, and about metrics that the daemon has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from brokers import ROOT
from deploy.conftest import Tool
from monitor.telemetry import HAPPENINGS, METRICS, Telemetry

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
TESTS = Path(__file__).with_name("rules_test.yaml")

OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that every series has, and that of a histogram's buckets."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Where each query stands, and what it asks; Grafana's variables filled in."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", [])]
    asked += [(annotation["name"], annotation["expr"]) for annotation in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), instance\)", variable["query"]["query"])
            assert inner
            asked.append((variable["name"], inner[1]))
    for title, query in asked:
        yield f"dashboard: {title}", query.replace("$__rate_interval", "5m").replace("$__interval", "5m").replace("$instance", ".*")


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Every sample name that /metrics can have, with its labels."""
    telemetry = Telemetry()
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(telemetry.exposition().decode()):
        name = f"{family.name}_total" if family.type == "counter" and f"{family.name}_total" in METRICS else family.name
        labels = set(METRICS[name].labels) if name in METRICS else set()
        suffixes = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",)
        names |= {sample.name: set(sample.labels) for sample in family.samples}
        names |= {name + suffix: labels | OF_PROMETHEUS for suffix in suffixes}
    return {name: labels | OF_PROMETHEUS for name, labels in names.items()}


@pytest.mark.parametrize(("where", "query"), [pytest.param(where, query, id=where) for where, query in queries()])
def test_every_metric_and_label_that_is_asked_for_exists(where: str, query: str, exposed: dict[str, set[str]]) -> None:
    plain = re.sub(r'"[^"]*"', '""', query)
    asked = set(re.findall(r"\b(?:monitor|process)_[a-z_]+\b", plain))
    assert asked or re.search(r"\bup\b", plain), f"{where}: asks for no metric of ours"
    assert asked <= exposed.keys(), where

    for name, matchers in re.findall(r"\b((?:monitor|process)_[a-z_]+)\{([^}]*)\}", plain):
        assert set(re.findall(r"([a-z_]+)\s*[=!]", matchers)) <= exposed[name], where
    there = OF_PROMETHEUS.union(*(exposed[name] for name in asked))
    for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", plain):
        assert set(re.split(r",\s*", labels)) <= there, where
    for happenings in re.findall(r'happening=~?"([^"]*)"', query):
        assert set(happenings.split("|")) <= HAPPENINGS.keys(), where


def test_prometheus_takes_rules_and_configuration(tool: Tool) -> None:
    for what, file in (("rules", RULES), ("config", RULES.with_name("prometheus.yaml"))):
        done = tool("promtool", "check", what, "--lint=all", "--lint-fatal", file)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_fires_when_it_should(tool: Tool) -> None:
    done = tool("promtool", "test", "rules", TESTS)

    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r'"(Monitor\w+)"', TESTS.read_text())) | set(re.findall(r"alertname: (\w+)", TESTS.read_text()))
    assert {rule["alert"] for rule in rules()} <= tested


def test_the_metrics_are_named_as_prometheus_wants_it(tool: Tool) -> None:
    done = tool("promtool", "check", "metrics", given=Telemetry().exposition().decode())

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboard_is_promql(tool: Tool, tmp_path: Path) -> None:
    recording = [{"record": f"query_{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recording}]}))
    done = tool("promtool", "check", "rules", file)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(query for where, query in queries() if where.startswith("dashboard"))

    assert [name for name in METRICS if name not in shown] == []
