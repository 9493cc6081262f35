"""The step of a small int8 model as one function of machine code, compiled by numba: no torch
between two products.

Products are exact: weights of 8 bits times activations of up to 16, summed in 32 bits. So the
result of a row is the same, bit for bit, whatever the other rows are. The step runs on one thread:
for weights that fit into a cache this is faster than to wake a second one for each product.

Shapes: L layers, R rows, H heads, K key/value heads, G = H / K, D head dimension, S positions seen.
x is the residual stream (R, hidden). Arrays are contiguous in their last dimension, or the loops
over it are not vectorized. Inner loops index whole arrays, because a view of one costs as much as
32 products.

numba keeps what it compiled where NUMBA_CACHE_DIR says: code_cache.py.
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
f32 = np.float32
i32 = np.int32
i16 = np.int16

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


class Matrices(NamedTuple):
    """One matrix of each layer, as quantized_linear.py makes them."""

    weights: NDArray[np.int8]  # (L, out, width)
    scale: Floats  # (L, out)
    bias: Floats  # (L, out)


class Weights(NamedTuple):
    """All weights of a decoder, and its rotations. embed and head have L = 1."""

    qkv: Matrices
    out: Matrices
    up: Matrices
    down: Matrices
    attention_norm: Floats  # (L, 2, hidden): weight and bias
    mlp_norm: Floats  # (L, 2, hidden)
    gains: Floats  # (L, H + K, D); (L, 0, D) without norms on queries and keys
    rotations: Floats  # (positions, dim / 2, 2): cos and sin of each pair
    last_norm: Floats  # (2, hidden)
    embed: Matrices
    positions: Floats  # (positions, hidden), added to the embeddings; (0, hidden) with rotations
    head: Matrices


class Shape(NamedTuple):
    """The fields of DecoderConfig that the weights' shapes do not tell."""

    heads: int
    window: int  # 0 without one
    activation: int  # see ACTIVATIONS
    gated: bool
    parallel: bool
    rms: bool  # norms are RMSNorm, whose bias is zero here, and not LayerNorm
    eps: float


@njit
def forward(
    ids: Any, start: int, shape: Shape, weights: Weights, keys: Any, values: Any, logits: Any
) -> None:
    """A pass over ids (R,) at positions from `start` on.

    Writes the keys and values (L, K, capacity, D) of those positions, and logits (kept, vocabulary)
    of the last rows.
    """
    rows = len(ids)
    kept = len(logits)
    kv_heads = keys.shape[1]
    dim = keys.shape[3]
    eps = f32(shape.eps)
    x = look_up(ids, start, weights)
    normed = np.empty_like(x)
    qkv = np.empty((rows, shape.heads + 2 * kv_heads, dim), f32)
    attended = np.empty((rows, shape.heads, dim), f32)
    upper = np.empty((rows, weights.up.weights.shape[1]), f32)
    scores = np.empty((shape.heads // kv_heads, start + rows), f32)
    for layer in range(len(keys)):
        norm(x, weights.attention_norm[layer], shape.rms, eps, normed)
        product(normed, weights.qkv, layer, qkv.reshape(rows, -1), False)
        if weights.gains.shape[1]:
            for r in range(rows):
                for head in range(shape.heads + kv_heads):
                    gain(qkv[r, head], weights.gains[layer, head], shape.rms, eps)
        cache_rows(qkv, weights.rotations, start, keys[layer], values[layer])
        attend_rows(qkv, keys[layer], values[layer], start, shape.window, scores, attended)
        product(attended.reshape(rows, -1), weights.out, layer, x, True)
        if not shape.parallel:
            norm(x, weights.mlp_norm[layer], shape.rms, eps, normed)
        product(normed, weights.up, layer, upper, False)
        inner = activated(upper, weights.down.weights.shape[2], shape)
        product(inner, weights.down, layer, x, True)
    norm(x[rows - kept :], weights.last_norm, shape.rms, eps, normed[:kept])
    product(normed[:kept], weights.head, 0, logits, False)


@njit
def look_up(ids: Any, start: int, weights: Weights) -> Any:
    """The embeddings (R, hidden) of ids (R,) at positions from `start` on."""
    embed = weights.embed
    x = np.empty((len(ids), embed.weights.shape[2]), f32)
    for r in range(len(ids)):
        x[r] = embed.weights[0, ids[r]] * embed.scale[0, ids[r]]
        if len(weights.positions):
            x[r] += weights.positions[start + r]
    return x


@njit
def product(x: Any, matrices: Matrices, layer: int, out: Any, add: bool) -> None:
    """x (R, width) times a layer's matrix into out (R, out), or added to it."""
    rows, width = x.shape
    # As fine as 32 bits can sum: 16 bits for 512 numbers, 11 for 12,288.
    largest = f32(min(32767, (2**31 - 1) // (127 * width)))
    whole = np.empty((rows, width), i16)
    steps = np.empty(rows, f32)
    for r in range(rows):
        row = x[r]
        into = whole[r]
        most = f32(1e-20)
        doubt = f32(0)
        for j in range(width):
            most = max(most, abs(row[j]))
            doubt += row[j] * f32(0)  # NaN for NaN and infinities, which whole numbers do not have
        steps[r] = most / largest + doubt
        inverse = largest / most
        for j in range(width):
            into[j] = i16(i32(np.rint(row[j] * inverse)))
    weights = matrices.weights[layer]
    scale = matrices.scale[layer]
    bias = matrices.bias[layer]
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
def cache_rows(qkv: Any, rotations: Any, start: int, keys: Any, values: Any) -> None:
    """Rotates the queries and keys in qkv (R, H + 2K, D), and writes keys and values (K, capacity,
    D) at positions from `start` on."""
    rows, parts, _ = qkv.shape
    kv_heads = len(keys)
    first_value = parts - kv_heads
    first_key = first_value - kv_heads
    for r in range(rows):
        for head in range(first_value):
            rotate(qkv[r, head], rotations[start + r])
        for head in range(kv_heads):
            keys[head, start + r] = qkv[r, first_key + head]
            values[head, start + r] = qkv[r, first_value + head]


@njit
def attend_rows(
    qkv: Any, keys: Any, values: Any, start: int, window: int, scores: Any, out: Any
) -> None:
    """out (R, H, D): attention to the keys and values (K, capacity, D) that each row may see."""
    kv_heads = len(keys)
    group = out.shape[1] // kv_heads
    for r in range(len(out)):
        stop = start + r + 1
        first = max(0, stop - window) if window else 0
        for head in range(kv_heads):
            own = slice(head * group, (head + 1) * group)
            seen = slice(first, stop)
            attend(qkv[r, own], keys[head, seen], values[head, seen], scores, out[r, own])


@njit
def attend(q: Any, keys: Any, values: Any, scores: Any, out: Any) -> None:
    """q and out (G, D); keys and values (S, D), which the heads share. scores: scratch (G, >= S)"""
    group, dim = q.shape
    seen = len(keys)
    fours = seen - seen % 4  # positions go by fours: what is summed stays in registers
    for s in range(0, fours, 4):
        for g in range(group):
            dot0 = f32(0)
            dot1 = f32(0)
            dot2 = f32(0)
            dot3 = f32(0)
            for j in range(dim):
                query = q[g, j]
                dot0 += query * keys[s, j]
                dot1 += query * keys[s + 1, j]
                dot2 += query * keys[s + 2, j]
                dot3 += query * keys[s + 3, j]
            scores[g, s] = dot0
            scores[g, s + 1] = dot1
            scores[g, s + 2] = dot2
            scores[g, s + 3] = dot3
    for s in range(fours, seen):
        for g in range(group):
            dot = f32(0)
            for j in range(dim):
                dot += q[g, j] * keys[s, j]
            scores[g, s] = dot
    for g in range(group):
        softmax(scores[g, :seen])
        out[g] = f32(0)
        for s in range(0, fours, 4):
            share0 = scores[g, s]
            share1 = scores[g, s + 1]
            share2 = scores[g, s + 2]
            share3 = scores[g, s + 3]
            for j in range(dim):
                out[g, j] += (
                    share0 * values[s, j]
                    + share1 * values[s + 1, j]
                    + share2 * values[s + 2, j]
                    + share3 * values[s + 3, j]
                )
        for s in range(fours, seen):
            share = scores[g, s]
            for j in range(dim):
                out[g, j] += share * values[s, j]


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
def activated(upper: Any, inner: int, shape: Shape) -> Any:
    """(R, inner): the activation of upper (R, inner), or of its first half times its second."""
    rows = len(upper)
    for r in range(rows):
        activate(upper[r, :inner], shape.activation)
    if not shape.gated:
        return upper
    narrow = np.empty((rows, inner), f32)
    for r in range(rows):
        for j in range(inner):
            narrow[r, j] = upper[r, j] * upper[r, inner + j]
    return narrow


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
    """Arguments of `forward` for the smallest model there is, of the types that compiled_step.py
    passes.

    numba compiles for types: other ones would make the engine compile once more.
    """
    norms = np.ones((1, 2, 4), f32)
    weights = Weights(
        qkv=_toy_matrices(16, 4),
        out=_toy_matrices(4, 8),
        up=_toy_matrices(8, 4),
        down=_toy_matrices(4, 8),
        attention_norm=norms,
        mlp_norm=norms,
        gains=np.ones((1, 0, 4), f32),
        rotations=np.ones((8, 2, 2), f32),
        last_norm=norms[0],
        embed=_toy_matrices(8, 4),
        positions=np.ones((0, 4), f32),
        head=_toy_matrices(8, 4),
    )
    shape = Shape(2, 0, GELU_TANH, False, False, False, 1e-5)
    cache = np.zeros((1, 1, 8, 4), f32)
    ids = np.zeros(1, np.int64)
    return ids, 0, shape, weights, cache, cache.copy(), np.empty((1, 8), f32)


def _toy_matrices(out: int, width: int) -> Matrices:
    scale = np.ones((1, out), f32)
    return Matrices(np.ones((1, out, width), np.int8), scale, np.zeros((1, out), f32))
