"""Models of other architectures than the native ones, run by transformers behind Decoder's
interface. Slower: no int8 weights, no compiled step, no CUDA graphs.

Only this module imports transformers, and only model.loading imports this module, for such a model.
No code of a model folder runs (trust_remote_code is false).

The cache is our KVCache, which transformers sees as a Cache of its own kind (CacheView). So prompts
are trimmed, forked and restored as for native models. A model whose layers keep anything else than
keys and values of one shape for all positions is refused: sliding windows, recurrent states,
compressed keys.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder, DecoderOutput
from model.decoder.factory import PREFILL_CHUNK
from model.decoder.kv_cache import KVCache
from model.decoder.stopping import ShouldStop, ask
from model.errors import ModelError
from model.families.hf_config import stop_ids
from model.weights.files import ModelFiles

log = logging.getLogger(__name__)
PROBE = 3  # positions of the pass that shows what a model keeps


class TransformersDecoder(Decoder):
    """A causal language model of transformers'. Made by `load`."""

    def __init__(self, model: Any, config: DecoderConfig) -> None:
        nn.Module.__init__(self)  # none of Decoder's own modules
        self.model = model
        self.config = config
        self.layers = nn.ModuleList()
        self.prefill_chunk = PREFILL_CHUNK
        self.cache_dtype = cast(torch.dtype, model.dtype)
        self.scheme = f"{str(model.dtype).removeprefix('torch.')} by transformers"
        self._step = None
        self._row_costs = None
        self._cache_costs = {}
        self._cache_name = _cache_name(model)
        self._keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.dtype)

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        should_stop: ShouldStop | None = None,
    ) -> DecoderOutput:
        """See Decoder.forward."""
        self.make_room(input_ids, cache)
        given: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            given[self._cache_name] = CacheView(cache, should_stop)
        if self._keeps_some:
            given["logits_to_keep"] = logits_to_keep
        ask(should_stop)
        logits = self.model(input_ids=input_ids, **given).logits
        if cache is not None:
            cache.commit(input_ids.shape[1])
        return DecoderOutput(logits[:, -logits_to_keep:])


class LayerView(CacheLayerMixin):
    """One layer of a KVCache as transformers writes and reads it."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: KVCache, layer: int, should_stop: ShouldStop | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        self._layer = layer
        self._should_stop = should_stop
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """key_states, value_states (1, kv_heads, new, D) -> all of the layer's.

        It is called once in each layer. Raises Cancelled.
        """
        ask(self._should_stop)
        return self._cache.append(self._layer, key_states[0], value_states[0])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.length + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.length

    def get_max_length(self) -> int:
        return -1


class CacheView(Cache):
    """A KVCache with room for the new positions, for one pass."""

    def __init__(self, cache: KVCache, should_stop: ShouldStop | None) -> None:
        count = cache.config.num_layers
        layers: list[Any] = [LayerView(cache, layer, should_stop) for layer in range(count)]
        super().__init__(layers=layers)


def load(folder: ModelFiles, device: torch.device, dtype: torch.dtype) -> TransformersDecoder:
    """The model of a Hugging Face folder, whose safetensors must be there. Raises ModelError."""
    if not folder.path.is_dir():
        raise ModelError(
            f"{folder.path} is no model folder. Use a native architecture's GGUF file."
        )
    list(folder.weight_files)  # refuses pickled weights with the remedy
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, for a model that transformers does not know or read
        first_line = str(error).partition("\n")[0]
        raise ModelError(
            f"{folder.path} has the model_type {folder.model_type!r}, which fimls does not run "
            f"itself, and transformers cannot load it ({first_line}). Use a native architecture, "
            "or a newer transformers."
        ) from None
    model, info = loaded
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise ModelError(
            f"{folder.path} lacks the tensors {', '.join(wrong[:4])}, or they have other shapes. "
            "Download the model again."
        )
    model = model.to(device).eval().requires_grad_(False)
    decoder = TransformersDecoder(model, _config(folder, model))
    log.warning(
        "%s: the architecture %s is not native; transformers runs it, slower",
        folder.name,
        folder.model_type,
    )
    return decoder


def _cache_name(model: Any) -> str:
    """transformers 5 calls the argument past_key_values first, and cache later."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _config(folder: ModelFiles, model: Any) -> DecoderConfig:
    """What generation and caches read, from the shapes of a first pass; the other fields, which
    only our own layers read, say nothing of the model. Raises ModelError."""
    cache = DynamicCache(config=model.config)
    ids = torch.zeros((1, PROBE), dtype=torch.long, device=model.device)
    given = {"use_cache": True, _cache_name(model): cache}
    other = ids.clone()
    other[0, -1] = 1
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, **given).logits
            others = model(input_ids=other, use_cache=False).logits
    except Exception as error:
        raise ModelError(
            f"{folder.path}: transformers cannot run the model ({type(error).__name__}: {error}). "
            "Use a native architecture."
        ) from None
    most = 16 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if float((logits[0, 0] - others[0, 0]).abs().max()) > most:
        raise ModelError(
            f"{folder.path}: a {folder.model_type} sees the text that follows, and so cannot "
            "continue one. Use a causal language model."
        )
    shapes: set[tuple[int, ...] | None] = set()
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        plain = type(layer) is DynamicLayer and isinstance(layer.keys, Tensor)
        shapes |= {tuple(layer.keys.shape), tuple(layer.values.shape)} if plain else {None}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None or len(shape) != 4 or shape[2] != PROBE:
        raise ModelError(
            f"{folder.path}: the layers of a {folder.model_type} keep other things than keys and "
            "values of one shape for every position (sliding windows, recurrent states, compressed "
            "keys). fimls runs no such model. Use a native architecture."
        )
    return DecoderConfig(
        vocab_size=logits.shape[-1],
        hidden_size=shape[1] * shape[3],
        intermediate_size=1,
        num_layers=len(layers),
        num_heads=shape[1],
        num_kv_heads=shape[1],
        head_dim=shape[3],
        max_positions=folder.max_positions,
        norm="layer_norm",
        norm_eps=0.0,
        rope=None,
        activation="gelu",
        gated_mlp=False,
        stop_ids=stop_ids(folder.config),
    )
