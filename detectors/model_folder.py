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

S = TypeVar("S")
N = TypeVar("N", bound=nn.Module)


def save_network(folder: Path, kind: str, settings: Mapping[str, Any], network: nn.Module) -> None:
    """`settings` are JSON-able."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors")
    (folder / "detector.json").write_text(json.dumps({"kind": kind, "format": 1} | dict(settings), indent=2) + "\n")


def read_network(folder: Path, kind: str, checked: Callable[[dict[str, Any]], S], build: Callable[[S], N]) -> tuple[S, N]:
    """What `save_network` wrote: its settings, `checked`, and the network, which `build` makes of them; both raise where these cannot be.

    Raises ModelRefused for anything else, before memory is taken for what the settings only claim.
    """
    try:
        saved = json.loads((folder / "detector.json").read_text())
        if saved.pop("kind") != kind or saved.pop("format") != 1:
            raise ModelRefused(f"{folder}: not a model of {kind}, format 1")
        settings = checked(saved)
        weights = load_file(folder / "weights.safetensors")
        with torch.device("meta"):
            claimed = {name: value.shape for name, value in build(settings).state_dict().items()}
        if claimed != {name: value.shape for name, value in weights.items()}:
            raise ValueError("its weights are those of other settings")
        network = build(settings)
        network.load_state_dict(weights)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
        raise ModelRefused(f"{folder} holds no model of {kind}: {error}") from error
    return settings, network
