"""What a pass computes beside its products, on float32 numbers, compiled by numba: norms, rotary
embedding, attention and activations.

Shapes: G query heads that share a key/value head, D head dimension, S positions seen. Arrays are
contiguous in their last dimension, or the loops over it are not vectorized. Inner loops index whole
arrays, because a view of one costs as much as 32 products.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.intrinsics import from_half

# Floats may be summed in any order, which vector instructions need; infinities and NaN keep their
# meaning.
njit = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)
f32 = np.float32
i32 = np.int32

GELU_TANH = 0
GELU = 1
SILU = 2
ACTIVATIONS = {"gelu_tanh": GELU_TANH, "gelu": GELU, "silu": SILU}
LOG2_E = f32(math.log2(math.e))
LN2_HIGH = f32(0.693359375)
LN2_LOW = f32(math.log(2) - 0.693359375)
ROOT_HALF = f32(math.sqrt(0.5))
TWICE_ROOT_2_PI = f32(2 * math.sqrt(2 / math.pi))
CUBIC = f32(0.044715)


@njit
def attend(q: Any, keys: Any, values: Any, scores: Any, wide: Any, out: Any) -> None:
    """q and out (G, D); keys and values (S, D), which the heads share, are bits of half-precision
    numbers. Scratch: scores (G, >= S), wide (4, D)."""
    group, dim = q.shape
    seen = len(keys)
    fours = seen - seen % 4  # positions go by fours: what is summed stays in registers
    for s in range(0, fours, 4):
        widen(keys, s, 4, wide)
        for g in range(group):
            dot0 = f32(0)
            dot1 = f32(0)
            dot2 = f32(0)
            dot3 = f32(0)
            for j in range(dim):
                query = q[g, j]
                dot0 += query * wide[0, j]
                dot1 += query * wide[1, j]
                dot2 += query * wide[2, j]
                dot3 += query * wide[3, j]
            scores[g, s] = dot0
            scores[g, s + 1] = dot1
            scores[g, s + 2] = dot2
            scores[g, s + 3] = dot3
    for s in range(fours, seen):
        widen(keys, s, 1, wide)
        for g in range(group):
            dot = f32(0)
            for j in range(dim):
                dot += q[g, j] * wide[0, j]
            scores[g, s] = dot
    for g in range(group):
        softmax(scores[g, :seen])
        out[g] = f32(0)
    for s in range(0, fours, 4):
        widen(values, s, 4, wide)
        for g in range(group):
            share0 = scores[g, s]
            share1 = scores[g, s + 1]
            share2 = scores[g, s + 2]
            share3 = scores[g, s + 3]
            for j in range(dim):
                out[g, j] += (
                    share0 * wide[0, j]
                    + share1 * wide[1, j]
                    + share2 * wide[2, j]
                    + share3 * wide[3, j]
                )
    for s in range(fours, seen):
        widen(values, s, 1, wide)
        for g in range(group):
            share = scores[g, s]
            for j in range(dim):
                out[g, j] += share * wide[0, j]


@njit
def widen(rows: Any, first: int, count: int, wide: Any) -> None:
    """Rows from `first` on of half-precision numbers as float32. (One loop, since a row of 64
    numbers would cost as much to begin as to widen.)"""
    from_ = rows[first : first + count].reshape(count * rows.shape[1])
    to = wide.reshape(wide.size)
    for j in range(len(from_)):
        to[j] = from_half(from_[j])


@njit
def softmax(x: Any) -> None:
    """In place."""
    most = x[0]
    total = f32(0)
    for j in range(len(x)):
        most = max(most, x[j])
    for j in range(len(x)):
        x[j] = exp(x[j] - most)
        total += x[j]
    for j in range(len(x)):
        x[j] /= total


@njit
def norm(x: Any, weight_and_bias: Any, rms: bool, eps: Any, out: Any) -> None:
    """LayerNorm or RMSNorm of x (R, n) into out (R, n)."""
    weight = weight_and_bias[0]
    bias = weight_and_bias[1]
    for r in range(len(x)):
        mean, inverse = moments(x[r], rms, eps)
        row = x[r]
        into = out[r]
        for j in range(len(row)):
            into[j] = (row[j] - mean) * inverse * weight[j] + bias[j]


@njit
def gain(x: Any, gains: Any, rms: bool, eps: Any) -> None:
    """LayerNorm or RMSNorm of x (D,), in place, without a bias."""
    mean, inverse = moments(x, rms, eps)
    for j in range(len(x)):
        x[j] = (x[j] - mean) * inverse * gains[j]


@njit
def moments(x: Any, rms: bool, eps: Any) -> Any:
    """The mean of x (n,), and one over its standard deviation.

    RMSNorm takes 0 in place of the mean (Zhang and Sennrich 2019).
    """
    mean = f32(0)
    squares = f32(0)
    count = f32(len(x))
    if not rms:
        for j in range(len(x)):
            mean += x[j]
        mean /= count
    for j in range(len(x)):
        squares += (x[j] - mean) * (x[j] - mean)
    return mean, f32(1) / np.sqrt(squares / count + eps)


@njit
def rotate(x: Any, rotations: Any) -> None:
    """Rotates the first pairs of x (D,), in place; rotations (dim / 2, 2)."""
    for j in range(len(rotations)):
        first = x[2 * j]
        second = x[2 * j + 1]
        x[2 * j] = first * rotations[j, 0] - second * rotations[j, 1]
        x[2 * j + 1] = first * rotations[j, 1] + second * rotations[j, 0]


@njit
def activate(x: Any, activation: int) -> None:
    """In place."""
    if activation == GELU_TANH:  # x * (1 + tanh(t)) / 2 is x * sigmoid(2t)
        for j in range(len(x)):
            x[j] = x[j] / (f32(1) + exp(-TWICE_ROOT_2_PI * (x[j] + CUBIC * x[j] * x[j] * x[j])))
    elif activation == GELU:
        for j in range(len(x)):
            x[j] = f32(0.5) * x[j] * (f32(1) + f32(math.erf(x[j] * ROOT_HALF)))
    else:
        for j in range(len(x)):
            x[j] = x[j] / (f32(1) + exp(-x[j]))


@njit
def exp(x: Any) -> Any:
    """In float32, to 2e-7 of its value (Cephes' polynomial): unlike the library's, it can be
    vectorized.

    Not below e^-64: a softmax would make denormal numbers of less, which are slow.
    """
    x = min(max(x, f32(-64)), f32(88))
    n = np.floor(x * LOG2_E + f32(0.5))
    f = x - n * LN2_HIGH - n * LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * f + f32(1.3981999507e-3)
    p = p * f + f32(8.3334519073e-3)
    p = p * f + f32(4.1665795894e-2)
    p = p * f + f32(1.6666665459e-1)
    p = p * f + f32(5.0000001201e-1)
    power = i32((i32(n) + i32(127)) << i32(23)).view(f32)  # 2**n, by its bits
    return (p * f * f + f + f32(1)) * power
