"""Trained models and a plant for every test of the real process."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from brokers import Broker
from integration.daemon import monitor, write_configuration
from integration.plant import Plant, picture


@pytest.fixture(scope="session")
def normals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of normal pictures, noisier than any that is streamed, so that the threshold is far from those."""
    folder = tmp_path_factory.mktemp("normals")
    for number in range(40):
        (folder / f"{number:03}.png").write_bytes(picture("normal", 1_000_000 + number, noise=50))
    return folder


@pytest.fixture(scope="session")
def trained(normals: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Mapping[str, Any]], Path]:
    """`trained(name, options)`: a model store with one version of that detector, trained by the command once per session."""

    @cache
    def train(name: str, options: str) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        tables = {
            "store": {"path": "models"},
            "sources.cameras": {"kind": "folder", "path": "inbox"},
            f"detectors.{name}": {"kind": "fake", "inputs": ["cameras"], "options": json.loads(options)},
            "sinks.alerts": {"kind": "folder", "path": "alerts"},
        }
        configuration = write_configuration(folder / "monitor.toml", tables)
        monitor("train", name, "--data", str(normals), "--layout", "folder", "--config", str(configuration))
        return folder / "models"

    return lambda name, options: train(name, json.dumps(options))


@pytest.fixture
def install(tmp_path: Path, trained: Callable[[str, Mapping[str, Any]], Path]) -> Callable[..., Path]:
    """`install(tables, folder="one")`: monitor.toml in a folder of its own, with a trained model for each of its detectors."""

    def install(tables: Mapping[str, Mapping[str, Any]], folder: str = "one", *, models: bool = True) -> Path:
        home = tmp_path / folder
        home.mkdir()
        for table, keys in tables.items():
            top, _, name = table.partition(".")
            if models and top == "detectors":
                shutil.copytree(trained(name, keys["options"]), home / "models", dirs_exist_ok=True)
        return write_configuration(home / "monitor.toml", tables)

    return install


@pytest.fixture
def apache_kafka(kafka_with: Callable[[str], Broker]) -> Broker:
    """The shared broker, if it tells the ends of topics, by which the books are closed; the stand-in does not."""
    return kafka_with("limits")


@pytest.fixture
def plant(apache_kafka: Broker) -> Iterator[Plant]:
    """Topics of its own on the shared broker."""
    plant = Plant(apache_kafka)
    yield plant
    plant.close()


@pytest.fixture(params=["kafka", "mqtt", "mqtt 3.1.1"])
def each_plant(request: pytest.FixtureRequest) -> Iterator[Plant]:
    """A plant on Kafka, and one on MQTT in both versions."""
    kind, _, version = request.param.partition(" ")
    broker = request.getfixturevalue("apache_kafka" if kind == "kafka" else "mosquitto")
    plant = Plant(broker, protocol=version or "5")
    yield plant
    plant.close()
