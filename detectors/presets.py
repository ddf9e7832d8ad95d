"""Presets: what the options of a method leave open."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from monitor.ports import Options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P", bound="DataclassInstance")


def overridden(preset: P, options: Options) -> P:
    """The preset, with what the options of the same names say instead where they are not None."""
    said = {field.name: getattr(options, field.name, None) for field in fields(preset)}
    return replace(preset, **{name: value for name, value in said.items() if value is not None})
