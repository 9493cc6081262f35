"""The decoder: a PyTorch module that turns token ids and a KV cache into logits.

In reading order:
- config: DecoderConfig, the sizes and switches of a decoder. Families differ by nothing else.
- rope: rotary position embedding.
- factory: the modules (matrices, embeddings, norms), and the factory that makes them of floats.
- stopping: how a pass is asked whether anybody waits for it.
- layers: attention, MLP, and the layer that joins them.
- kv_cache: the keys and values of one sequence, to append to, trim, fork and copy.
- decoder: the whole forward pass, and the protocol of a faster step for few rows.

Invariants:
- No module here knows a family, a file or a device: model.families makes the config,
  model.weights fills the weights, model.cpu and model.gpu make other modules and steps.
- A pass that is cancelled leaves the cache as it was. The same pass, if it is the next one, goes on
  at the layer where it was cancelled.
- A decoder does not change after it is loaded, except by `use_step`.
"""
