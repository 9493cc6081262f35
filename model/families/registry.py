"""FAMILIES: the families that have a file in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from model import families
from model.families.family import Family


def _find() -> dict[str, Family]:
    """The families by model_type, sorted: every FAMILY that a module of this folder holds."""
    found = {}
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        if module.name != __name__:
            family = getattr(importlib.import_module(module.name), "FAMILY", None)
            if family is not None:
                found[family.model_type] = family
    return dict(sorted(found.items()))


FAMILIES: Mapping[str, Family] = _find()
