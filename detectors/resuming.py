"""A training on disk: networks, optimizers and facts in one safetensors file, to go on from as if it had never stopped."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, empty_like, nn
from torch.optim import Optimizer

from monitor.errors import ConfigError


class Checkpoint:
    """The file at `path`, of the training that `identity` (below) names. The networks and optimizers are read and changed in place."""

    def __init__(self, path: Path, identity: str, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
        self._path = path
        self._identity = identity
        self._networks = networks
        self._optimizers = optimizers

    def write(self, facts: Mapping[str, Any], more: Mapping[str, Tensor] | None = None) -> None:
        """Written beside and moved into place: a kill leaves the one before. `facts` are JSON-able; `more`: tensors besides."""
        tensors = {f"more.{name}": value for name, value in (more or {}).items()}
        groups = {}
        for owner, network in self._networks.items():
            tensors |= {f"{owner}.{name}": value for name, value in network.state_dict().items()}
        for owner, optimizer in self._optimizers.items():
            state = optimizer.state_dict()
            groups[owner] = state["param_groups"]
            tensors |= {f"optimizer {owner}.{index}.{name}": value for index, slots in state["state"].items() for name, value in slots.items()}
        head = json.dumps({"identity": self._identity, "groups": groups, "facts": facts})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"head": head})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self._path)

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Takes up what `write` left, and returns its facts and the tensors besides; None where there is nothing.

        Raises ConfigError when the file is of another training.
        """
        if not self._path.exists():
            return None
        with safe_open(self._path, "pt") as file:
            head = json.loads(file.metadata()["head"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if head["identity"] != self._identity:
            raise ConfigError(f"{self._path} is of another training (other data, options or seed): expected it removed, or the same again")
        for owner, network in self._networks.items():
            network.load_state_dict(_of(owner, tensors))
        for owner, optimizer in self._optimizers.items():
            state = _slots(optimizer, _of(f"optimizer {owner}", tensors))
            optimizer.load_state_dict({"state": state, "param_groups": head["groups"][owner]})
        return head["facts"], _of("more", tensors)


def identity(settings: Any, *tensors: Tensor) -> str:
    """What must be equal for a checkpoint to be gone on from: JSON-able settings, initial weights (so their shapes) and data."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _of(owner: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{owner}."): value for name, value in tensors.items() if name.startswith(f"{owner}.")}


def _slots(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's tensors, in the memory layout of their parameters: the same arithmetic as before the stop."""
    slots: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        laid_out = empty_like(like).copy_(value) if value.shape == like.shape else value
        slots.setdefault(int(index), {})[name] = laid_out.detach()
    return slots
