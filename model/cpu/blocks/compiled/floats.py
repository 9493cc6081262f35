"""What a pass computes beside its products, on float32 numbers, compiled by numba: norms, rotary
embedding and activations.

Shapes: R rows, D head dimension. Arrays are contiguous in their last dimension, or the loops over
it are not vectorized. Inner loops index whole arrays, because a view of one costs as much as 32
products.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.words import GELU, GELU_TANH

# Floats may be summed in any order, which vector instructions need; infinities and NaN keep their
# meaning.
njit = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)
f32 = np.float32
i32 = np.int32

LOG2_E = f32(math.log2(math.e))
LN2_HIGH = f32(0.693359375)
LN2_LOW = f32(math.log(2) - 0.693359375)
ROOT_HALF = f32(math.sqrt(0.5))
TWICE_ROOT_2_PI = f32(2 * math.sqrt(2 / math.pi))
CUBIC = f32(0.044715)


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
