"""`fimls eval`.

- evaluate: the command, which draws the samples and prints a row for each contestant and task.
- contestants: the ways to ask that are compared, and how a sample is asked.
- rows: the figures of one contestant's answers in one task, and how they are printed.
- programs: tasks with tests, HumanEval's and its infilling's: answers are judged by running them.
- sandbox: runs a program that a model has written; sandboxed: the process that it runs in, which
  imports nothing of fimls.

The samples and the measures of similarity are in fim.evaluation.
"""
