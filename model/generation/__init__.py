"""From a prompt's token ids to the tokens that continue it. In reading order:

- generate.py: prefill, then decode steps; the options of a generation, and the protocol of the
  score processors, which change the model's log-probabilities before a token is chosen.
- sampling.py: chooses a token from log-probabilities: greedy, or from the likeliest ones.
- token_healing.py: a score processor for an answer that must begin with a given text.
- copying.py: a score processor that raises what followed the same tokens earlier in the prompt.
- drafting.py: speculative decoding with prompt look-up: which tokens one pass verifies.
- text_matches.py: finds where the end of a text stood before, for copying and drafting.

Drafts change how many passes a generation takes, never its tokens. After each token the cache
holds a prefix of the prompt and the tokens so far, so it can be kept and trimmed (KVCache.trim) at
any moment. Absent: editors, requests, threads and files; model.engine has those.
"""
