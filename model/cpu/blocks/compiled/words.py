"""The words that tell a pass what to do: int64, most of them addresses. Arrays as arguments would
take numba several times as long to compile, and each call some of a small model's time.

Shapes: R rows, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

LINE = 8  # int64 in a cache line

# The words of the threads' control block. Those that change are in cache lines of their own:
# the number of the last pass, how many threads without one sleep, whether they shall end, and how
# many sleep until a phase is done.
PASS, ASLEEP, STOP, WAITING = 0, LINE, 2 * LINE, 3 * LINE
# What a pass works on: layers from PART until END. Its phases are those from FIRST_PHASE on, PHASES
# of each layer.
NROWS, KEPT, START, KEYS, VALUES, CAPACITY, LOGITS, PART, END, FIRST_PHASE, PHASES = range(
    4 * LINE, 4 * LINE + 11
)
# The model. Floats are in the first half of their word.
LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, PAIRS, WINDOW, SPLITS, ACTIVATION, RMS, EPS, SCORE_SCALE = (
    range(6 * LINE, 6 * LINE + 12)
)
# Addresses: of the phases; of cos and sin, float32 (positions, PAIRS, 2); of what all threads share
# (the residual stream, float32 (R, HIDDEN); queries, keys and values (R, H + 2K, D); what attention
# gives (R, H * D in whole blocks); rounded: what many rows' products read, and the MLP's inner
# activations); of each thread's words.
(
    TABLE, ROTATIONS, X, QKV, ATTENDED, READ, READ_STEPS, READ_SUMS, INNER, INNER_STEPS, INNER_SUMS,
    OWN,
) = range(8 * LINE, 8 * LINE + 12)  # fmt: skip
# Addresses of functions: of the tiles, and of the C library with its semaphores; of these there is
# one for the threads without a pass, and one for those that wait for a phase's end.
(
    MULTIPLY, ROUND, WIDEN, MULTIPLY_WIDE, WIDE_ROWS, WIDEN_ROWS, ATTEND, THREADS, WAIT, POST, IDLE,
    DONE,
) = range(10 * LINE, 10 * LINE + 12)  # fmt: skip
WORDS = 12 * LINE
# Then, for each phase, two words in a cache line each: the number of its last pass with how many
# pieces are taken, and with how many are done.
COUNTERS = 2 * LINE

# The words of a phase. MANY: whether it is of a pass over many rows. PANELS: address of int64
# (COUNT, PANEL). BIAS: address of float32 (outputs,), or 0. NORM: address of float32 (2, HIDDEN),
# weight and bias, or 0. GAINS: address of float32 (H + K, D), of the norms on queries and keys, or
# 0. FACTOR: float32, of a product. WIDTH: in whole blocks.
KIND, LAYER, PIECES, PIECE, MANY, PANELS, COUNT, WIDTH, BIAS, NORM, GAINS, FACTOR = range(12)
FIELDS = 12
# Kinds. UP_GATED: as many panels of the gate, then those of the other half. Of many rows alone:
# READING rounds what a product reads, KEEPING puts keys and values into the cache.
TO_QKV, ATTENTION, TO_X, UP, UP_GATED, DOWN, HEAD, READING, KEEPING = range(9)

# Activations of the MLP.
GELU_TANH, GELU, SILU = range(3)
ACTIVATIONS = {"gelu_tanh": GELU_TANH, "gelu": GELU, "silu": SILU}

# What tells a panel: its address, the numbers of its format and of its kind of wide blocks, its
# first output and how many it has.
ADDRESS, CODE, WIDE_KIND, FIRST, OUTS = range(5)
PANEL = 5

# A thread's own words: addresses of float32 (HIDDEN in whole blocks,); of rounded rows, if they are
# few; of two tiles, float32 (R, OUTPUTS); of widened blocks of a panel; of a key (D,); and for
# attention as in tiles/attention.py.
(
    NORMED, ROUNDED, STEPS, SUMS, TILE, OTHER, WIDE, KEY, SEEN_KEYS, SEEN_VALUES, QUERIES, SEEN,
    SCORES, MOST, TOTAL, OUT,
) = range(16)  # fmt: skip
OWN_WORDS = 16

FEW = 16  # rows, at most, of a pass that takes panels as they are
TOGETHER = 256  # of many rows, those whose sums stay in a core's second cache
AT_A_TIME = 8  # of many rows, those that a thread rounds or keeps
