"""FAMILIES: the families that have a file in the folder native/."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from model.families import native
from model.families.family import Family


def _find() -> dict[str, Family]:
    """The families by model_type, sorted: every FAMILY that a module of native/ holds."""
    found = {}
    for module in pkgutil.iter_modules(native.__path__, f"{native.__name__}."):
        family: Family = importlib.import_module(module.name).FAMILY
        found[family.model_type] = family
    return dict(sorted(found.items()))


FAMILIES: Mapping[str, Family] = _find()
