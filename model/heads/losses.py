"""Losses of labels, as transformers computes them (its loss/loss_utils.py)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label of a position that does not count
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)


def causal_loss(
    logits: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """The mean cross-entropy in nats of labels (B, T) under logits (B, T, vocabulary), of each
    label under the logits of the position before it.

    shift_labels: those that have moved to that position already, in place of labels.
    num_items_in_batch: what the sum is divided by, else the number of labels that count. Raises
    ValueError.
    """
    if shift_labels is not None:
        return class_loss(logits.float(), shift_labels, num_items_in_batch, "shift_labels")
    assert labels is not None
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels is {tuple(labels.shape)}, but there are logits of {tuple(logits.shape[:2])}. "
            "Labels are as long as the input, and need logits_to_keep to be 0"
        )
    shifted = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    return class_loss(logits.float(), shifted, num_items_in_batch)


def class_loss(
    logits: Tensor, labels: Tensor, items: int | Tensor | None = None, name: str = "labels"
) -> Tensor:
    """The mean cross-entropy of labels (...) under logits (..., classes), without the labels
    IGNORED.

    items: what the sum is divided by, else their number. name: of the labels, for errors. Raises
    ValueError.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} is {tuple(labels.shape)}, but must be {tuple(logits.shape[:-1])}: one class "
            "each"
        )
    classes = logits.shape[-1]
    # Checked here, because such a label ends a CUDA process.
    if labels.is_floating_point() or bool(
        ((labels != IGNORED) & ((labels < 0) | (labels >= classes))).any()
    ):
        raise ValueError(
            f"{name} must be whole numbers from 0 to {classes - 1}, or {IGNORED} to be ignored"
        )
    flat = labels.reshape(-1).to(logits.device, torch.long)
    rows = logits.reshape(-1, classes)
    if items is None:
        return F.cross_entropy(rows, flat, ignore_index=IGNORED)
    if isinstance(items, Tensor):
        items = items.to(logits.device)
    return F.cross_entropy(rows, flat, ignore_index=IGNORED, reduction="sum") / items


def sequence_loss(logits: Tensor, labels: Tensor, problem: ProblemType | None) -> Tensor:
    """The loss of a sequence's labels under logits (B, labels).

    problem None: regression where there is one label, else one class a sequence where labels are
    whole numbers (B,), else several (B, labels) of 0 to 1. Raises ValueError.
    """
    count = logits.shape[-1]
    if problem is None:
        whole = labels.dtype in (torch.long, torch.int)
        several: ProblemType = (
            "single_label_classification" if whole else "multi_label_classification"
        )
        problem = "regression" if count == 1 else several
    if problem == "single_label_classification":
        return class_loss(logits, labels.reshape(-1))
    labels = labels.to(logits)
    if count == 1:
        labels = labels.reshape(-1, 1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels is {tuple(labels.shape)}, but must be {tuple(logits.shape)} for {problem}"
        )
    if problem == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)
