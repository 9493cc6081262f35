"""The step of a small int8 model as one function of machine code, compiled by numba: no torch
between two products.

Products are exact: weights of 8 bits times activations of up to 16, summed in 32 bits; so a row
comes out the same, bit for bit, whatever stands beside it. It runs on one thread, which for weights
that fit into a cache is faster than to wake a second one for each product.

Shapes: L layers, R rows, H heads, K key/value heads, D head dimension, S positions seen. Arrays are
contiguous in their last dimension, or the loops over it are not vectorized; inner loops index whole
arrays, because a view of one costs as much as 32 products.

numba keeps what it compiled where NUMBA_CACHE_DIR says: model.cpu.code_cache.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Floats may be summed in any order, which vector instructions need; infinities and NaN keep their
# meaning.
njit = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)
f32, i32, i16 = np.float32, np.int32, np.int16

GELU_TANH, GELU, SILU = 0, 1, 2
ACTIVATIONS = {"gelu_tanh": GELU_TANH, "gelu": GELU, "silu": SILU}
LOG2_E, LN2_HIGH, LN2_LOW = f32(math.log2(math.e)), f32(0.693359375), f32(math.log(2) - 0.693359375)
ROOT_HALF = f32(math.sqrt(0.5))
TWICE_ROOT_2_PI, CUBIC = f32(2 * math.sqrt(2 / math.pi)), f32(0.044715)


class Matrices(NamedTuple):
    """One matrix of each layer, as model.quantize has them: int8 (L, out, width), scales and biases
    (L, out)."""

    weights: NDArray[np.int8]
    scale: Floats
    bias: Floats


class Weights(NamedTuple):
    """Norms are (..., 2, hidden), weight and bias; gains (L, H + K, D), or (L, 0, D) without norms
    on queries and keys.

    turns: cos and sin of every position's pairs, (positions, dim / 2, 2). embed and head have L =
    1.
    """

    qkv: Matrices
    out: Matrices
    up: Matrices
    down: Matrices
    attention_norm: Floats
    mlp_norm: Floats
    gains: Floats
    turns: Floats
    last_norm: Floats
    embed: Matrices
    head: Matrices


class Shape(NamedTuple):
    """window: 0 without one. activation: see ACTIVATIONS."""

    heads: int
    window: int
    activation: int
    gated: bool
    parallel: bool
    eps: float


@njit
def forward(
    ids: Any, start: int, shape: Shape, w: Weights, keys: Any, values: Any, logits: Any
) -> None:
    """A pass over ids (R,) at positions from `start` on.

    Writes the keys and values (L, K, capacity, D) of those positions, and logits (kept, vocabulary)
    of the last rows.
    """
    rows, hidden, inner = len(ids), w.embed.weights.shape[2], w.down.weights.shape[2]
    kv_heads, dim = keys.shape[1], keys.shape[3]
    heads, group, eps = shape.heads, shape.heads // kv_heads, f32(shape.eps)
    x = np.empty((rows, hidden), f32)
    for r in range(rows):
        embedding, scale = w.embed.weights[0, ids[r]], w.embed.scale[0, ids[r]]
        for j in range(hidden):
            x[r, j] = embedding[j] * scale
    normed = np.empty((rows, hidden), f32)
    qkv = np.empty((rows, heads + 2 * kv_heads, dim), f32)
    attended = np.empty((rows, heads, dim), f32)
    upper = np.empty((rows, w.up.weights.shape[1]), f32)
    scores = np.empty((group, start + rows), f32)
    for layer in range(len(keys)):
        norm(x, w.attention_norm[layer], eps, normed)
        product(normed, w.qkv, layer, qkv.reshape(rows, -1), False)
        for r in range(rows):
            for head in range(heads + kv_heads):
                if w.gains.shape[1]:
                    gain(qkv[r, head], w.gains[layer, head], eps)
                rotate(qkv[r, head], w.turns[start + r])
            for head in range(kv_heads):
                keys[layer, head, start + r] = qkv[r, heads + head]
                values[layer, head, start + r] = qkv[r, heads + kv_heads + head]
        for r in range(rows):
            stop = start + r + 1
            first = max(0, stop - shape.window) if shape.window else 0
            for head in range(kv_heads):
                seen_keys, seen_values = (
                    keys[layer, head, first:stop],
                    values[layer, head, first:stop],
                )
                own = slice(head * group, (head + 1) * group)
                attend(qkv[r, own], seen_keys, seen_values, scores, attended[r, own])
        product(attended.reshape(rows, -1), w.out, layer, x, True)
        if not shape.parallel:
            norm(x, w.mlp_norm[layer], eps, normed)
        product(normed, w.up, layer, upper, False)
        for r in range(rows):
            activate(upper[r, :inner], shape.activation)
        narrow = upper
        if shape.gated:
            narrow = np.empty((rows, inner), f32)
            for r in range(rows):
                for j in range(inner):
                    narrow[r, j] = upper[r, j] * upper[r, inner + j]
        product(narrow, w.down, layer, x, True)
    kept = len(logits)
    norm(x[rows - kept :], w.last_norm, eps, normed[:kept])
    product(normed[:kept], w.head, 0, logits, False)


@njit
def product(x: Any, matrices: Matrices, layer: int, out: Any, add: bool) -> None:
    """x (R, width) times a layer's matrix into out (R, out), or added to it."""
    rows, width = x.shape
    # As fine as 32 bits can sum: 16 bits for 512 numbers, 11 for 12,288.
    largest = f32(min(32767, (2**31 - 1) // (127 * width)))
    whole, steps = np.empty((rows, width), i16), np.empty(rows, f32)
    for r in range(rows):
        row, into, most, doubt = x[r], whole[r], f32(1e-20), f32(0)
        for j in range(width):
            most = max(most, abs(row[j]))
            doubt += row[j] * f32(0)  # NaN for NaN and infinities, which whole numbers do not have
        steps[r] = most / largest + doubt
        inverse = largest / most
        for j in range(width):
            into[j] = i16(i32(np.rint(row[j] * inverse)))
    weights, scale, bias = matrices.weights[layer], matrices.scale[layer], matrices.bias[layer]
    for i in range(len(weights)):
        for r in range(rows):
            total = i32(0)
            for j in range(width):
                total = i32(total + i32(weights[i, j]) * i32(whole[r, j]))
            y = f32(total) * (scale[i] * steps[r]) + bias[i]
            if add:
                out[r, i] += y
            else:
                out[r, i] = y


@njit
def attend(q: Any, keys: Any, values: Any, scores: Any, out: Any) -> None:
    """q and out (G, D), whose heads share keys and values (S, D). scores: scratch (G, S or
    more)."""
    group, dim = q.shape
    seen = len(keys)
    fours = seen - seen % 4  # positions go by fours: what is summed stays in registers
    for s in range(0, fours, 4):
        for g in range(group):
            a, b, c, d = f32(0), f32(0), f32(0), f32(0)
            for j in range(dim):
                x = q[g, j]
                a += x * keys[s, j]
                b += x * keys[s + 1, j]
                c += x * keys[s + 2, j]
                d += x * keys[s + 3, j]
            scores[g, s], scores[g, s + 1], scores[g, s + 2], scores[g, s + 3] = a, b, c, d
    for s in range(fours, seen):
        for g in range(group):
            a = f32(0)
            for j in range(dim):
                a += q[g, j] * keys[s, j]
            scores[g, s] = a
    for g in range(group):
        softmax(scores[g, :seen])
        out[g] = f32(0)
        for s in range(0, fours, 4):
            a, b, c, d = scores[g, s], scores[g, s + 1], scores[g, s + 2], scores[g, s + 3]
            for j in range(dim):
                out[g, j] += (
                    a * values[s, j]
                    + b * values[s + 1, j]
                    + c * values[s + 2, j]
                    + d * values[s + 3, j]
                )
        for s in range(fours, seen):
            a = scores[g, s]
            for j in range(dim):
                out[g, j] += a * values[s, j]


@njit
def softmax(x: Any) -> None:
    """In place."""
    most, total = x[0], f32(0)
    for j in range(len(x)):
        most = max(most, x[j])
    for j in range(len(x)):
        x[j] = exp(x[j] - most)
        total += x[j]
    for j in range(len(x)):
        x[j] /= total


@njit
def norm(x: Any, weight_and_bias: Any, eps: Any, out: Any) -> None:
    """LayerNorm of x (R, n)."""
    weight, bias = weight_and_bias[0], weight_and_bias[1]
    for r in range(len(x)):
        mean, inverse = moments(x[r], eps)
        row, into = x[r], out[r]
        for j in range(len(row)):
            into[j] = (row[j] - mean) * inverse * weight[j] + bias[j]


@njit
def gain(x: Any, gains: Any, eps: Any) -> None:
    """LayerNorm of x (D,), in place, without a bias."""
    mean, inverse = moments(x, eps)
    for j in range(len(x)):
        x[j] = (x[j] - mean) * inverse * gains[j]


@njit
def moments(x: Any, eps: Any) -> Any:
    """The mean, and one over the standard deviation."""
    mean, squares, count = f32(0), f32(0), f32(len(x))
    for j in range(len(x)):
        mean += x[j]
    mean /= count
    for j in range(len(x)):
        squares += (x[j] - mean) * (x[j] - mean)
    return mean, f32(1) / np.sqrt(squares / count + eps)


@njit
def rotate(x: Any, turns: Any) -> None:
    """The pairs of x (D,), in place; turns (dim / 2, 2)."""
    for j in range(len(turns)):
        a, b = x[2 * j], x[2 * j + 1]
        x[2 * j] = a * turns[j, 0] - b * turns[j, 1]
        x[2 * j + 1] = a * turns[j, 1] + b * turns[j, 0]


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


def toy() -> tuple[Any, ...]:
    """Arguments of `forward` for the smallest model there is, of the types that model.compiled
    passes.

    Other types would have the engine compile once more: numba compiles for types.
    """

    def matrices(out: int, width: int) -> Matrices:
        return Matrices(
            np.ones((1, out, width), np.int8), np.ones((1, out), f32), np.zeros((1, out), f32)
        )

    norms = np.ones((1, 2, 4), f32)
    weights = Weights(
        matrices(16, 4),
        matrices(4, 8),
        matrices(8, 4),
        matrices(4, 8),
        norms,
        norms,
        np.ones((1, 0, 4), f32),
        np.ones((8, 2, 2), f32),
        norms[0],
        matrices(8, 4),
        matrices(8, 4),
    )
    cache, shape = np.zeros((1, 1, 8, 4), f32), Shape(2, 0, 0, False, False, 1e-5)
    return np.zeros(1, np.int64), 0, shape, weights, cache, cache.copy(), np.empty((1, 8), f32)
