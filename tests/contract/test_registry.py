"""Every registered kind names classes and functions that are there."""

import pytest

from monitor.ports import Options
from monitor.registry import Group, kinds, options_class, resolve

NAMES: dict[Group, tuple[str, ...]] = {
    "sources": ("implementation", "sender", "probe"),
    "sinks": ("implementation", "receiver", "probe"),
    "dead_letters": ("implementation", "probe"),
    "detectors": ("implementation",),
}


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group in NAMES for kind in kinds(group)])
def test_what_its_options_name_can_be_imported(group: Group, kind: str) -> None:
    options = options_class(group, kind)

    assert issubclass(options, Options)
    for name in NAMES[group]:
        assert callable(resolve(getattr(options, name))), name


@pytest.mark.parametrize(
    ("group", "kind"), [(group, kind) for group in NAMES for kind in kinds(group) if not options_class(group, kind).__module__.startswith("fake_")]
)
def test_every_option_says_what_it_means(group: Group, kind: str) -> None:
    silent = [name for name, field in options_class(group, kind).model_fields.items() if not field.description]

    assert silent == []
