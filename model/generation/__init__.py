"""From a prompt's token ids to the tokens that continue it. In reading order:

- generate.py: prefill, then decode steps; the options of a generation, and the protocol of the
  score processors, which change the model's log-probabilities before a token is chosen.
- sampling.py: chooses a token from log-probabilities: greedy, or temperature and nucleus sampling.
- token_healing.py: a score processor for an answer that must begin with a given text.
- copying.py: a score processor that raises what followed the same tokens earlier in the prompt.
- drafting.py: speculative decoding with prompt look-up: which tokens to verify in one pass.
- text_matches.py: finds where the end of a text stood before; copying and drafting read it.

Drafts change how many passes a generation takes, never its tokens. After each token the cache
holds a prefix of the prompt and the tokens so far. Nothing here knows text positions, editors,
requests or the disk; who may use the model at a time is the engine's affair.
"""
