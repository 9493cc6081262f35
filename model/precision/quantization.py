"""The kinds of weights by their names, their bytes, and which kind fits into the free memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model.errors import ModelError
from model.precision.bitsandbytes_linear import KINDS, library

# What may be asked for; see `named`.
QUANTIZATIONS = ("auto", "none", "int8", "int4", *KINDS)
NAMES = {"blocks": "auto"}  # what asks for a kind that has no name of its own
ROOM = 0.9  # the share of the free memory that weights may take; the rest is for caches


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs of memory for its weights: bytes by kind (see Choice), of those kinds that
    it can have. "int4" and "blocks" are among them where this machine multiplies weights in blocks.

    trainable: for a head, whose gradients go through the matrices.
    """

    name: str
    nbytes: Mapping[str | None, int]
    trainable: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """kind: "int8" and "int4" are fimls' own for CPUs, and so is "blocks", those of a GGUF file as
    they are; the others are bitsandbytes'; None for floats. reason: one line for people."""

    kind: str | None
    reason: str


def choose_quantization(
    quantization: str | None,
    dtype_name: str,
    dtype: torch.dtype,
    device: torch.device,
    needs: Needs,
    free: int | None,
) -> Choice:
    """The kind of weights that is asked for, or with "auto" the first one that fits.

    dtype_name: as it is asked for, maybe "auto". free: bytes of the device's memory; None if
    unknown. Raises ModelError with the remedy.
    """
    if quantization == "auto":
        return _first_that_fits(_candidates(dtype_name, device, needs), dtype, device, needs, free)
    kind = named(quantization, dtype_name, device, needs)
    needed = needs.nbytes.get(kind)  # what it cannot have is refused by who loads it
    if free is not None and needed is not None and needed > free:
        remedy = "Use"
        if smaller := _smaller(kind, dtype_name, device, needs):
            remedy = f"Set the quantization to {NAMES.get(smaller, smaller)!r}, use"
        raise ModelError(
            f"{needs.name} needs {_gb(needed)} for its weights, but {_gb(free)} of the memory of "
            f"{device} are free. {remedy} a smaller model, or close what else uses the memory."
        )
    return Choice(kind, f"{_word(kind, dtype)} as asked for{_speed(kind, device)}")


def named(
    quantization: str | None, dtype_name: str, device: torch.device, needs: Needs
) -> str | None:
    """The kind of that name on the device: "int8" is fimls' own on a CPU and LLM.int8() on a GPU,
    "int4" is fimls' own where the CPU has that, else "nf4-double". Raises ModelError."""
    if quantization in (None, "none"):
        return None
    if quantization not in QUANTIZATIONS:
        raise ModelError(
            f"The quantization {quantization!r} is unknown. Use one of "
            f"{', '.join(map(repr, QUANTIZATIONS))}."
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(
            f"{quantization} weights do not run on {device}. Set the quantization to 'none'."
        )
    if quantization == "int8" and device.type == "cpu":
        if needs.trainable:
            raise ModelError(
                "fimls' own int8 weights have no gradients. Set the quantization to 'llm.int8'."
            )
        if dtype_name not in ("auto", "float32"):
            raise ModelError(
                f"int8 weights go with float32, not with {dtype_name}. Set the dtype to 'auto', or "
                "the quantization to 'llm.int8'."
            )
        return quantization
    own = device.type == "cpu" and not needs.trainable and dtype_name in ("auto", "float32")
    if quantization == "int4" and own and "int4" in needs.nbytes:
        return quantization
    library()
    return {"int8": "llm.int8", "int4": "nf4-double"}.get(quantization, quantization)


def _candidates(dtype_name: str, device: torch.device, needs: Needs) -> list[str | None]:
    """The kinds in the order of preference, those that bitsandbytes multiplies too."""
    floats: list[str | None] = [None]
    if "int8" not in needs.nbytes or device.type not in ("cpu", "cuda"):
        return floats
    if device.type != "cpu" or needs.trainable or dtype_name not in ("auto", "float32"):
        return [*floats, "llm.int8", "nf4-double"]
    least = "int4" if "int4" in needs.nbytes else "nf4-double"
    if dtype_name == "float32":
        return [*floats, "int8", least]
    return ["blocks" if "blocks" in needs.nbytes else "int8", least]


def _smaller(kind: str | None, dtype_name: str, device: torch.device, needs: Needs) -> str | None:
    """A kind that takes less than another; None where there is none."""
    for other in _candidates(dtype_name, device, needs):
        if other is not None and needs.nbytes[other] < needs.nbytes[kind]:
            return other
    return None


def _first_that_fits(
    candidates: list[str | None],
    dtype: torch.dtype,
    device: torch.device,
    needs: Needs,
    free: int | None,
) -> Choice:
    """Raises ModelError where none fits."""
    installed = importlib.util.find_spec("bitsandbytes") is not None
    usable = [kind for kind in candidates if installed or kind not in KINDS]
    needed = {kind: needs.nbytes[kind] for kind in candidates}
    too_large: list[str] = []
    for kind in usable:
        room = ROOM if kind != usable[-1] else 1  # rather with little room than not at all
        if free is None or needed[kind] <= room * free:
            reason = f"{_word(kind, dtype)}, which need {_gb(needed[kind])}"
            if free is not None:
                reason += f" of the {_gb(free)} of memory that {device} has free"
            if too_large:
                reason += f"; {', '.join(too_large)} would not fit"
            return Choice(kind, reason + _speed(kind, device))
        too_large.append(f"{_word(kind, dtype)} ({_gb(needed[kind])})")
    assert free is not None
    sizes = ", ".join(f"{_gb(needed[kind])} as {_word(kind, dtype)}" for kind in candidates)
    remedy = "Use"
    if any(needed[kind] <= free for kind in candidates):
        remedy = "Install bitsandbytes for fewer bits (pip install 'fimls[gpu]'), use"
    raise ModelError(
        f"The weights of {needs.name} need {sizes}, but {_gb(free)} of the memory of {device} "
        f"are free. {remedy} a smaller model, or close what else uses the memory."
    )


def _word(kind: str | None, dtype: torch.dtype) -> str:
    if kind == "blocks":
        return "the file's own blocks"
    return kind or str(dtype).removeprefix("torch.")


def _speed(kind: str | None, device: torch.device) -> str:
    """What is said of kinds that are slow on the device."""
    if kind in KINDS and device.type == "cpu":
        return ". On a CPU these are slow: a smaller model in int8 is faster"
    return ""


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
