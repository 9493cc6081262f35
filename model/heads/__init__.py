"""The model alone, to fine-tune, to score with or to classify with: four heads on one Decoder.

    from model.heads import SequenceClassifier
    m = SequenceClassifier.load("bundled", num_labels=3)
    m.train()
    m(ids, attention_mask=mask, labels=labels).loss.backward()

In reading order:
- attention: eager, SDPA and flash-attn.
- cache: the keys and values of a batch, for the pass over what follows.
- layers: one layer with dropouts and its attention weights.
- passes: a pass through the decoder's layers with masks, positions and embeddings of the caller's,
  with gradients, and with what is inside: hidden states, attention weights.
- losses: of labels, as transformers computes them.
- generation: continues a batch of texts, greedy or sampled.
- heads: BareModel, CausalLM, SequenceClassifier, TokenClassifier.
- initialization: new weights.
- loading: fills a head with a checkpoint, which may be another head's; writes one.
- lora: adapters of few weights, by peft.

Invariants:
- Inputs, outputs and losses are those of transformers' classes of these heads, in float32 to 1e-4.
- Completions never come through here: they have Decoder.forward, which shares the layers.
- The weights are the caller's to change, unlike those of a decoder that serves completions.
"""

from model.heads.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier

__all__ = ["BareModel", "CausalLM", "SequenceClassifier", "TokenClassifier"]
