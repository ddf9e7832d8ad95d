"""A trained network on disk: weights.safetensors, and in detector.json its kind and all that its scoring needs besides."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from monitor.errors import ConfigError, ModelRefused

N = TypeVar("N", bound=nn.Module)


def save_network(folder: Path, kind: str, settings: Mapping[str, Any], network: nn.Module) -> None:
    """`settings` are JSON-able."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors")
    (folder / "detector.json").write_text(json.dumps({"kind": kind, "format": 1} | dict(settings), indent=2) + "\n")


def read_network(folder: Path, kind: str, build: Callable[[dict[str, Any]], N]) -> N:
    """What `save_network` wrote; `build` makes a network of its settings, and raises where they cannot be.

    Raises ModelRefused for anything else, before memory is taken for what the settings only claim.
    """
    try:
        settings = json.loads((folder / "detector.json").read_text())
        if settings.pop("kind") != kind or settings.pop("format") != 1:
            raise ModelRefused(f"{folder}: not a model of {kind}, format 1")
        weights = load_file(folder / "weights.safetensors")
        with torch.device("meta"):
            claimed = {name: value.shape for name, value in build(dict(settings)).state_dict().items()}
        if claimed != {name: value.shape for name, value in weights.items()}:
            raise ValueError("its weights are those of other settings")
        network = build(settings)
        network.load_state_dict(weights)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
        raise ModelRefused(f"{folder} holds no model of {kind}: {error}") from error
    return network
