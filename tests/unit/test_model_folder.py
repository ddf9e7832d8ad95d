"""Networks on disk: written and read back; anything else is refused, and before memory is taken for it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detectors.model_folder import read_network, save_network
from monitor.errors import ConfigError, ModelRefused


@dataclass(frozen=True)
class Wide:
    width: int
    name: str


def wide(saved: dict[str, Any]) -> Wide:
    return Wide(**saved)


def network(settings: Wide) -> nn.Module:
    if settings.name == "impossible":
        raise ConfigError("name: expected another")
    return nn.Sequential(nn.Linear(settings.width, settings.width), nn.BatchNorm1d(settings.width))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_network(tmp_path / "model", "wide", asdict(Wide(3, "Grüße")), network(Wide(3, "Grüße")))
    return tmp_path / "model"


def edit(folder: Path, **changed: Any) -> None:
    path = folder / "detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    settings = Wide(3, "Grüße")
    written = network(settings)
    for parameter in written.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.arange(9.0).view(3, 3).T  # as channels last: not contiguous
    save_network(tmp_path / "deep" / "model", "wide", asdict(settings), written)
    assert {path.name for path in (tmp_path / "deep" / "model").iterdir()} == {"weights.safetensors", "detector.json"}
    said = (tmp_path / "deep" / "model" / "detector.json").read_text()
    assert said == '{\n  "kind": "wide",\n  "format": 1,\n  "width": 3,\n  "name": "Gr\\u00fc\\u00dfe"\n}\n'
    found, read = read_network(tmp_path / "deep" / "model", "wide", wide, network)
    assert found == settings
    assert read.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in read.state_dict().items())
    assert all(not value.is_meta for value in read.state_dict().values())


@pytest.mark.parametrize("changed", [{"kind": "narrow"}, {"format": 2}, {"format": None}])
def test_another_kind_or_format_is_refused(folder: Path, changed: dict[str, Any]) -> None:
    edit(folder, **changed)
    with pytest.raises(ModelRefused, match="not a model of wide, format 1"):
        read_network(folder, "wide", wide, network)


@pytest.mark.parametrize("changed", [{"width": "3"}, {"width": -1}, {"width": None}, {"more": 1}, {"name": "impossible"}])
def test_settings_that_cannot_be_are_refused(folder: Path, changed: dict[str, Any]) -> None:
    edit(folder, **changed)
    with pytest.raises(ModelRefused, match="holds no model of wide"):
        read_network(folder, "wide", wide, network)


@pytest.mark.parametrize("width", [2, 4, 10**9])
def test_weights_of_other_settings_are_refused_before_memory_is_taken(folder: Path, width: int) -> None:
    built: list[nn.Module] = []

    def watched(settings: Wide) -> nn.Module:
        built.append(network(settings))
        return built[-1]

    edit(folder, width=width)
    with pytest.raises(ModelRefused, match="its weights are those of other settings"):
        read_network(folder, "wide", wide, watched)
    (only,) = built
    assert all(value.is_meta for value in only.state_dict().values())


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"7", b"no json", b"\xff\xfe", b"[" * 100_000, b'{"kind": "wide"}'])
def test_a_broken_description_is_refused(folder: Path, content: bytes) -> None:
    (folder / "detector.json").write_bytes(content)
    with pytest.raises(ModelRefused):
        read_network(folder, "wide", wide, network)


def test_missing_foreign_and_broken_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ModelRefused):
        read_network(folder, "wide", wide, network)
    for content in (b"", whole[:20], whole[:-1], b"\xff" * 100, b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(ModelRefused):
            read_network(folder, "wide", wide, network)
    save_file({"0.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ModelRefused, match="other settings"):
        read_network(folder, "wide", wide, network)
    with pytest.raises(ModelRefused):
        read_network(folder / "nothing", "wide", wide, network)
