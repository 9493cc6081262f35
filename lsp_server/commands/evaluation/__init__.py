"""The parts of `fimls eval`, in the order of their use. commands/evaluate.py joins them.

- contestants: the ways to ask that are compared. One is a set of settings and a layout.
- asking: asks a contestant about a sample, through the whole product or the bare model.
- rows: the figures of one contestant's answers in one task.
- table: the rows as text.

The samples and the measures of similarity are in fim.evaluation.
"""
