"""The parts of `fimls eval`, in the order of their use. commands/evaluate.py joins them.

- contestants: the ways to ask that are compared, and how a sample is asked.
- rows: the figures of one contestant's answers in one task, and how they are printed.

The samples and the measures of similarity are in fim.evaluation.
"""
