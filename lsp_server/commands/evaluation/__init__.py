"""`fimls eval`.

- evaluate: the command, which draws the samples and prints a row for each contestant and task.
- contestants: the ways to ask that are compared, and how a sample is asked.
- rows: the figures of one contestant's answers in one task, and how they are printed.

The samples and the measures of similarity are in fim.evaluation.
"""
