"""The base of `fimls eval`: samples from source files, and scores of the answers.

- samples: the places that are cut out of files, for evaluation and for training.
- scoring: how close an answer is to the author's text; the baseline that copies.

No model and no file is known here. The same files and seed always give the same samples: published
figures depend on them.
"""
