"""How the numbers of an interleaved matrix lie in memory.

A panel holds OUTPUTS rows of the matrix: first the first QUAD numbers of each of them, then the
next QUAD, and so on. That is the order in which vector instructions read them: four products of
8-bit numbers are added to each 32-bit sum at once. AVX512-VNNI, AVX-VNNI and AVX2 all read it.
"""

OUTPUTS = 32
QUAD = 4
OFFSET = 128  # more than the value of an activation is its unsigned form, which VNNI takes
LARGEST = 127  # no number is -128
