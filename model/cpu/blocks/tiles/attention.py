"""Attention of some queries to a block of cached positions.

A vector holds one number of each of its queries, so that softmax needs no sums across a vector, and
a key's or value's number is spread over it. What a query gets is computed in the same order
whatever the others are: in a step of one row as in a prefill, if blocks begin at multiples of
POSITIONS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from model.cpu.blocks.layout import ROW, WIDTHS
from model.cpu.blocks.tiles.code import F16, F32, I1, I32, Code, function, loop, switch
from model.cpu.blocks.tiles.cpus import PORTABLE, Instructions

MASKED = -1e30  # the score of a position that a query does not see
LEAST = -64.0  # e to the power of less would be denormal numbers, which are slow
LOG2_E = math.log2(math.e)
LN2_HIGH = 0.693359375
LN2_LOW = math.log(2) - LN2_HIGH
# Cephes' polynomial for e^x: 2e-7 of the value.
POLYNOMIAL = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip


def define(module: ir.Module, cpu: Instructions) -> None:
    """widen_rows(rows, count, dim, into, numbers_only): float16 (count, dim) to float32, ROW bytes
    from row to row. numbers_only: 1 makes NaN 0.

    attend(kind, first, count, dim, keys, values, queries, seen, scores, most, total, out): adds
    what WIDTHS[kind] queries get from `count` positions, the first of which is `first`. keys,
    values: as widen_rows gives them, with room for POSITIONS. queries: float32 (dim, width).
    seen: int32 (2, width), the first position that each sees and the one after the last. Before the
    first block most (width,) is MASKED, total (width,) and out (dim, width) are 0, all float32;
    after the last out / total is the result. scores: room for float32 (POSITIONS, width).

    All are whole numbers, most of them addresses.
    """

    def write(inner: ir.IRBuilder, width: int, *args: Any) -> None:
        _Attention(inner, cpu, width, *args).generate()

    with function(module, "widen_rows", 5) as (b, args):
        _widen(Code(b, cpu), *args)
    with function(module, "attend", 12) as (b, args):
        switch(b, args[0], WIDTHS, write, args[1:])


def _widen(code: Code, rows: Any, count: Any, dim: Any, into: Any, numbers_only: Any) -> None:
    b = code.builder
    every = b.icmp_signed("==", numbers_only, code.index(0))

    def copy(at: Any, to: Any, halves: ir.Type, floats: ir.Type) -> None:
        wide = b.fpext(code.load(at, 0, halves), floats)
        zero = ir.Constant(floats, 0.0 if floats is F32 else [0.0] * code.lanes)
        keep = b.fcmp_ordered("ord", wide, wide)
        spread = every if floats is F32 else code.spread(every, ir.VectorType(I1, code.lanes))
        code.store(b.select(b.or_(keep, spread), wide, zero), to, 0)

    vectors = b.udiv(dim, code.index(code.lanes))
    whole = b.mul(vectors, code.index(code.lanes))
    with loop(b, count) as r:
        at = b.add(rows, b.mul(r, b.mul(dim, code.index(2))))
        to = b.add(into, b.mul(r, code.index(ROW)))
        with loop(b, vectors) as v:
            first = b.mul(v, code.index(code.lanes))
            places = b.add(at, b.mul(first, code.index(2))), b.add(to, b.mul(first, code.index(4)))
            copy(*places, code.halves, code.floats)
        with loop(b, b.sub(dim, whole)) as rest:
            j = b.add(whole, rest)
            copy(b.add(at, b.mul(j, code.index(2))), b.add(to, b.mul(j, code.index(4))), F16, F32)


class _Attention(Code):
    def __init__(
        self, builder: ir.IRBuilder, cpu: Instructions, width: int, first: Any, count: Any,
        dim: Any, keys: Any, values: Any, queries: Any, seen: Any, scores: Any, most: Any,
        total: Any, out: Any,
    ) -> None:  # fmt: skip
        super().__init__(builder, cpu, min(cpu.lanes, width))
        self.width = width
        self.vectors = range(width // self.lanes)
        self.at_once = max(1, cpu.registers // 2 // len(self.vectors))
        self.first = first
        self.count = count
        self.dim = dim
        self.keys = keys
        self.values = values
        self.queries = queries
        self.seen = seen
        self.scores = scores
        self.most = most
        self.total = total
        self.out = out

    def fma(self, a: Any, by: Any, more: Any) -> Any:
        """In two steps where a CPU may have no instruction for it: it would be a call."""
        if self.cpu.name != PORTABLE.name:
            return super().fma(a, by, more)
        return self.builder.fadd(self.builder.fmul(a, by), more)

    def generate(self) -> None:
        b = self.builder
        tiles = b.udiv(
            b.add(self.count, self.index(self.at_once - 1)), self.index(self.at_once)
        )  # Scores of what is after the last position are not read.
        with loop(b, tiles) as tile:
            s = b.mul(tile, self.index(self.at_once))
            keys = b.add(self.keys, b.mul(s, self.index(ROW)))
            into = b.add(self.scores, b.mul(s, self.index(4 * self.width)))
            places = [ROW * each for each in range(self.at_once)]
            self._add_products(keys, places, 4, self.dim, self.queries, into, adds=False)
        self._softmax()
        tiles = b.udiv(self.dim, self.index(self.at_once))
        whole = b.mul(tiles, self.index(self.at_once))
        with loop(b, tiles) as tile:
            self._add_values(b.mul(tile, self.index(self.at_once)), self.at_once)
        with loop(b, b.sub(self.dim, whole)) as rest:
            self._add_values(b.add(whole, rest), 1)

    def _add_values(self, j: Any, columns: int) -> None:
        b = self.builder
        values = b.add(self.values, b.mul(j, self.index(4)))
        into = b.add(self.out, b.mul(j, self.index(4 * self.width)))
        places = [4 * each for each in range(columns)]
        self._add_products(values, places, ROW, self.count, self.scores, into, adds=True)

    def _add_products(
        self, a: Any, places: list[int], step: int, count: Any, by: Any, into: Any, *, adds: bool
    ) -> None:
        """into[i] (+)= the sum over k < count of a[i, k] * by[k]: a's number (i, k) is at
        places[i] + step * k, by and into (..., width)."""
        b = self.builder
        sums = {}
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        for i in range(len(places)):
            for v in self.vectors:
                sums[i, v] = self.variable(self.floats)
                at = 4 * (self.width * i + self.lanes * v)
                b.store(self.load(into, at, self.floats) if adds else zero, sums[i, v])
        with loop(b, count) as k:
            row = b.add(by, b.mul(k, self.index(4 * self.width)))
            numbers = b.add(a, b.mul(k, self.index(step)))
            factors = [self.load(row, 4 * self.lanes * v, self.floats) for v in self.vectors]
            for i, place in enumerate(places):
                number = self.spread(self.load(numbers, place, F32), self.floats)
                for v in self.vectors:
                    b.store(self.fma(number, factors[v], b.load(sums[i, v])), sums[i, v])
        for (i, v), total in sums.items():
            self.store(b.load(total), into, 4 * (self.width * i + self.lanes * v))

    def _softmax(self) -> None:
        """Makes shares of scores, and brings what there is to the new largest score."""
        b = self.builder
        most = self._over_positions(self.most, self._see)
        factors = []
        for v in self.vectors:
            before = self.load(self.most, 4 * self.lanes * v, self.floats)
            factors.append(self._exp(b.fsub(before, most[v])))
            self.store(most[v], self.most, 4 * self.lanes * v)
            total = self.load(self.total, 4 * self.lanes * v, self.floats)
            self.store(b.fmul(total, factors[v]), self.total, 4 * self.lanes * v)

        def share(score: Any, at: Any, v: int, total: Any) -> Any:
            limit = ir.Constant(self.floats, [MASKED / 2] * self.lanes)
            none = ir.Constant(self.floats, [0.0] * self.lanes)
            masked = b.fcmp_ordered("<", score, limit)  # NaN is not
            found = b.select(masked, none, self._exp(b.fsub(score, most[v])))
            self.store(found, at, 4 * self.lanes * v)
            return b.fadd(total, found)

        totals = self._over_positions(self.total, lambda score, at, s, v, t: share(score, at, v, t))
        for v in self.vectors:
            self.store(totals[v], self.total, 4 * self.lanes * v)
        with loop(b, self.dim) as j:
            row = b.add(self.out, b.mul(j, self.index(4 * self.width)))
            for v in self.vectors:
                scaled = b.fmul(self.load(row, 4 * self.lanes * v, self.floats), factors[v])
                self.store(scaled, row, 4 * self.lanes * v)

    def _over_positions(self, start: Any, change: Callable[..., Any]) -> list[Any]:
        """What `change` makes, position by position, of vectors that begin as those at an
        address."""
        b = self.builder
        found = [self.variable(self.floats) for _ in self.vectors]
        for v in self.vectors:
            b.store(self.load(start, 4 * self.lanes * v, self.floats), found[v])
        with loop(b, self.count) as s:
            at = b.add(self.scores, b.mul(s, self.index(4 * self.width)))
            for v in self.vectors:
                score = self.load(at, 4 * self.lanes * v, self.floats)
                b.store(change(score, at, s, v, b.load(found[v])), found[v])
        return [b.load(each) for each in found]

    def _see(self, score: Any, at: Any, s: Any, v: int, most: Any) -> Any:
        """Masks a score of those that do not see its position; the larger one of it and `most`."""
        b = self.builder
        position = self.spread(b.trunc(b.add(self.first, s), I32), self.ints)
        start = self.load(self.seen, 4 * self.lanes * v, self.ints)
        stop = self.load(self.seen, 4 * (self.width + self.lanes * v), self.ints)
        sees = b.and_(b.icmp_signed("<=", start, position), b.icmp_signed("<", position, stop))
        masked = ir.Constant(self.floats, [MASKED] * self.lanes)
        score = b.select(sees, score, masked)
        self.store(score, at, 4 * self.lanes * v)
        return b.select(b.fcmp_ordered(">", score, most), score, most)

    def _exp(self, x: Any) -> Any:
        """e to the power of x, which is not positive. NaN stays."""
        b = self.builder

        def constant(number: float) -> Any:
            return ir.Constant(self.floats, [float(np.float32(number))] * self.lanes)

        x = b.select(b.fcmp_ordered("<", x, constant(LEAST)), constant(LEAST), x)
        n = self.fma(x, constant(LOG2_E), constant(0.5))
        n = self.call(f"llvm.floor.v{self.lanes}f32", self.floats, n)
        f = self.fma(n, constant(-LN2_HIGH), x)
        f = self.fma(n, constant(-LN2_LOW), f)
        p = constant(POLYNOMIAL[0])
        for coefficient in POLYNOMIAL[1:]:
            p = self.fma(p, f, constant(coefficient))
        p = b.fadd(self.fma(p, b.fmul(f, f), f), constant(1.0))
        exponent = ir.Constant(self.ints, [127] * self.lanes)
        bits = b.shl(
            b.add(b.fptosi(n, self.ints), exponent), ir.Constant(self.ints, [23] * self.lanes)
        )
        return b.fmul(p, b.bitcast(bits, self.floats))
