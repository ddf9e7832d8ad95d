"""What `kustomize build` makes of a folder, as far as deploy/kubernetes goes; whatever it does not know is refused.

Known: resources, components, configMapGenerator (files; behavior replace), images (newTag), patches (a strategic merge by
`path`; JSON 6902 with `target` and `patch`, of which `remove`).
"""

from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
_KEYS = {"apiVersion", "kind", "resources", "components", "configMapGenerator", "images", "patches"}
_ATOMIC = {"tolerations", "args", "command"}
"""Lists that a strategic merge replaces as a whole; those of named objects are merged by name."""


class KustomizationError(Exception):
    """What kustomize would refuse, or would leave undone without a word."""


def build(folder: Path, base: list[Object] | None = None) -> list[Object]:
    """Every object; `base` is what a component changes."""
    file = folder / "kustomization.yaml"
    if not file.is_file():
        raise KustomizationError(f"{folder}: no kustomization.yaml")
    written: Object = yaml.safe_load(file.read_text())
    kind = written["kind"]
    if written["apiVersion"] != _KINDS.get(kind) or (kind == "Component") != (base is not None):
        raise KustomizationError(f"{file}: {written['apiVersion']} {kind}")
    if unknown := written.keys() - _KEYS:
        raise KustomizationError(f"{file}: {sorted(unknown)}")
    objects = list(base or [])
    for resource in written.get("resources", []):
        path = folder / resource
        objects += build(path) if path.is_dir() else _read(path)
    for generator in written.get("configMapGenerator", []):
        _generate(folder, generator, objects)
    for component in written.get("components", []):
        objects = build(folder / component, objects)
    for patch in written.get("patches", []):
        _patch(folder, patch, objects)
    for image in written.get("images", []):
        _retag(image, objects)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    if len(set(names)) != len(names):
        raise KustomizationError(f"{file}: twice the same object in {names}")
    return objects


def _read(file: Path) -> list[Object]:
    if not file.is_file():
        raise KustomizationError(f"{file}: no such file")
    return [item for item in yaml.safe_load_all(file.read_text()) if item]


def _find(objects: list[Object], kind: str, name: str) -> Object:
    for item in objects:
        if (item["kind"], item["metadata"]["name"]) == (kind, name):
            return item
    raise KustomizationError(f"no {kind} {name} to patch or replace")


def _generate(folder: Path, generator: Object, objects: list[Object]) -> None:
    if unknown := generator.keys() - {"name", "files", "behavior"}:
        raise KustomizationError(f"configMapGenerator: {sorted(unknown)}")
    data = {Path(name).name: (folder / name).read_text() for name in generator["files"]}
    if generator.get("behavior", "create") == "replace":
        _find(objects, "ConfigMap", generator["name"])["data"] = data
    else:
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})


def _patch(folder: Path, patch: Object, objects: list[Object]) -> None:
    if patch.keys() == {"path"}:
        for change in _read(folder / patch["path"]):
            target = _find(objects, change["kind"], change["metadata"]["name"])
            target.update(merged(target, change))
        return
    if patch.keys() != {"target", "patch"}:
        raise KustomizationError(f"patches: {sorted(patch)}")
    target = _find(objects, patch["target"]["kind"], patch["target"]["name"])
    for operation in yaml.safe_load(patch["patch"]):
        if operation["op"] != "remove":
            raise KustomizationError(f"patches: {operation}")
        *way, last = operation["path"].strip("/").split("/")
        place = target
        for step in way:
            place = place[step]
        del place[last]  # KeyError: as for kustomize, nothing to remove is an error


def _retag(image: Object, objects: list[Object]) -> None:
    changed = 0
    for item in objects:
        for container in item["spec"]["template"]["spec"]["containers"] if item["kind"] == "StatefulSet" else []:
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
                changed += 1
    if not changed:
        raise KustomizationError(f"images: nothing runs {image['name']}")


def merged(old: Any, change: Any, key: str = "") -> Any:
    """A strategic merge patch."""
    if isinstance(old, dict) and isinstance(change, dict):
        return old | {name: merged(old.get(name), value, name) for name, value in change.items()}
    if isinstance(old, list) and isinstance(change, list) and key not in _ATOMIC:
        found = {item["name"]: item for item in old}
        for item in change:
            if item.get("$patch") == "delete":
                del found[item["name"]]
            else:
                found[item["name"]] = merged(found.get(item["name"], {}), item)
        return list(found.values())
    return change
