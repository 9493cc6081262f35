"""The heads: the bare model, the causal language model, classifiers of sequences and of tokens.

The names of inputs and outputs are transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from model.decoder.decoder import Decoder
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.generation.sampling import Sampling
from model.heads.attention import AttnImplementation, check_implementation
from model.heads.generation import BatchOptions, continue_batch
from model.heads.loading import (
    HeadConfig,
    LoadingReport,
    draw_new,
    fill,
    open_checkpoint,
    open_config,
    save,
)
from model.heads.losses import causal_loss, class_loss, sequence_loss
from model.heads.passes import HeadOutput, Inputs, PassOptions, States, run
from model.placement.device_map import GivenMap
from model.placement.spread import Spread, check_changeable
from model.weights.files import ModelFiles


class Head(nn.Module):
    """What all heads share. Made by `load`; in evaluation mode at first, as every module is after
    `eval()`.

    report: how the checkpoint fitted. adapted: whether it has LoRA weights (model.heads.lora).
    """

    keeps_lm_head: ClassVar[bool] = False

    def __init__(self, decoder: Decoder, config: HeadConfig, files: ModelFiles) -> None:
        super().__init__()
        self.decoder = decoder
        self.config = config
        self.files = files
        self.report = LoadingReport()
        self.attn_implementation: AttnImplementation = "sdpa"
        self.gradient_checkpointing = False
        self.adapted = False

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantization: str | None = None,
        attn_implementation: str = "sdpa",
        num_labels: int | None = None,
        problem_type: str | None = None,
        device_map: Literal["auto"] | GivenMap | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
        tensor_parallel: ProcessGroup | None = None,
    ) -> Self:
        """A model's name as in load_model -> the head with its weights, or with new ones where the
        checkpoint is another head's (`report` tells, and a warning in the log).

        quantization: None, "llm.int8", "nf4", "nf4-double", or "auto" (the first of them that fits
        into the free memory); the decoder is frozen then, and a classifier's own weights and LoRA's
        can be trained. attn_implementation: see set_attn_implementation. num_labels, problem_type:
        of a classifier, where config.json does not state them or is to be overruled. device_map,
        max_memory, offload_folder, tensor_parallel: see model.placement.spread. Raises ModelError
        with the remedy.
        """
        spread = Spread(device_map, max_memory, offload_folder, tensor_parallel)
        checkpoint, decoder = open_checkpoint(
            name, device, dtype, quantization, cls.keeps_lm_head, spread
        )
        config = HeadConfig.of(checkpoint.folder, num_labels, problem_type)
        head = cls(decoder, config, checkpoint.folder)
        head.set_attn_implementation(attn_implementation)
        head.report = fill(head, checkpoint)
        return head.eval()

    @classmethod
    def from_config(
        cls,
        config: str | Path | Mapping[str, Any],
        *,
        device: str = "auto",
        dtype: str = "float32",
        attn_implementation: str = "sdpa",
        num_labels: int | None = None,
        problem_type: str | None = None,
    ) -> Self:
        """A model of new weights, to train from scratch. They are drawn with config.json's
        initializer_range from torch's generator: torch.manual_seed comes before.

        config: what config.json holds, or the name of a model that has one; its tokenizer is the
        new one's then. The other arguments: load's. Raises ModelError with the remedy.
        """
        files, decoder = open_config(config, device, dtype, cls.keeps_lm_head)
        head = cls(decoder, HeadConfig.of(files, num_labels, problem_type), files)
        head.set_attn_implementation(attn_implementation)
        head.report = draw_new(head)
        return head.eval()

    def save(self, folder: str | Path) -> None:
        """Writes config.json, weights and tokenizer, for `load` and for transformers'
        from_pretrained. Raises ModelError, OSError."""
        if self.adapted:
            raise ModelError(
                "The head has LoRA weights beside its own. merge_lora(head) comes before save; "
                "save_lora(head, folder) saves them alone."
            )
        save(self, Path(folder))

    def set_attn_implementation(self, name: str) -> None:
        """By "eager", "sdpa" or "flash_attention_2" (see model.heads.attention), from the next pass
        on. Raises ModelError with the remedy."""
        self.attn_implementation = check_implementation(name)

    def gradient_checkpointing_enable(self) -> None:
        """In training the backward pass computes each layer again, from its input, instead of
        keeping all between: less memory, a third more time. Dropouts repeat what they dropped."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing = False

    def resize_embeddings(self, vocab_size: int) -> None:
        """Makes room for new tokens, or drops the last ones. A new token's embedding, and its row
        of the language model's head, is the mean of those before. Comes before an optimizer takes
        the weights. Raises ValueError, ModelError."""
        if vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size}, but must be positive")
        if self.adapted:
            raise ValueError("the head has LoRA weights: merge_lora(head) comes first")
        decoder = self.decoder
        check_changeable(decoder)
        decoder.config = replace(decoder.config, vocab_size=vocab_size)
        matrices = [cast(nn.Embedding, decoder.embed_tokens)]
        if not decoder.config.tie_embeddings:
            matrices.append(cast(nn.Embedding, decoder.head))
        for matrix in matrices:
            rows = matrix.weight.detach()[:vocab_size]
            new = rows.float().mean(0, keepdim=True).to(rows).expand(vocab_size - len(rows), -1)
            matrix.weight = nn.Parameter(torch.cat((rows, new)), matrix.weight.requires_grad)

    @property
    def own_weights(self) -> Mapping[str, WeightSlot]:
        """The head's weights by their names in a checkpoint. New ones are drawn where it has
        none."""
        return {}

    @property
    def is_bare(self) -> bool:
        """Whether there is no head on the decoder."""
        return not self.keeps_lm_head and not self.own_weights

    def states(self, input_ids: Tensor | None, inputs: Inputs) -> States:
        """The pass through the decoder; see model.heads.passes.run."""
        options = PassOptions(
            attn_implementation=self.attn_implementation, use_cache=self.config.use_cache
        )
        if self.training:
            options = replace(
                options,
                use_cache=False,
                dropouts=self.config.dropouts,
                gradient_checkpointing=self.gradient_checkpointing,
            )
        return run(self.decoder, input_ids, options, **inputs)


class BareModel(Head):
    """The decoder without a head."""

    def forward(self, input_ids: Tensor | None = None, **inputs: Unpack[Inputs]) -> States:
        """inputs: see model.heads.passes.Inputs. Raises ValueError."""
        return self.states(input_ids, inputs)


class CausalLM(Head):
    """The next token's logits at every position."""

    keeps_lm_head = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput:
        """logits (B, positions kept, vocabulary).

        labels: (B, T), as the input_ids, with -100 where the token does not count. shift_labels,
        num_items_in_batch: see model.heads.losses.causal_loss. logits_to_keep: the last so many
        positions, 0 for all, or the indices of some. The other inputs: model.heads.passes.Inputs.
        Raises ValueError.
        """
        states = self.states(input_ids, inputs)
        x = states.last_hidden_state
        x = x[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else x[:, logits_to_keep]
        logits = self.decoder.logits_of(x)
        loss = None
        if labels is not None or shift_labels is not None:
            loss = causal_loss(logits, labels, shift_labels, num_items_in_batch)
        return output(states, logits, loss)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
    ) -> Tensor:
        """Continues input_ids (B, T) -> those and the new ids, (B, at most T + max_new_tokens).

        attention_mask: (B, T), 0 at padding, which is at the left; else all but pad_token_id are
        seen, or all if that ends a text. do_sample: draws each token, else it is the likeliest.
        temperature, top_k, top_p, min_p: see model.generation.sampling. seed: the same one draws
        the same ids; every row has draws of its own. eos_token_id: what ends a text, else as
        config.json has it, () for nothing. pad_token_id: what stands behind the end, else
        config.json's. Raises ValueError, which names the input and the remedy.
        """
        sampling = Sampling()
        if do_sample:
            sampling = Sampling(temperature, top_p, seed, top_k, min_p)
            if not temperature:
                raise ValueError("temperature is 0: leave do_sample out for the likeliest tokens")
        if eos_token_id is None:
            eos_token_id = self.decoder.config.stop_ids
        ends = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        pad = self.config.pad_id if pad_token_id is None else pad_token_id
        options = BatchOptions(max_new_tokens, sampling, ends, pad)
        return continue_batch(self, self.decoder.config, input_ids, attention_mask, options)


class Classifier(Head):
    """A head with one linear layer of its own."""

    with_bias: ClassVar[bool]

    def __init__(self, decoder: Decoder, config: HeadConfig, files: ModelFiles) -> None:
        super().__init__(decoder, config, files)
        self.score = nn.Linear(
            decoder.config.hidden_size,
            config.num_labels,
            self.with_bias,
            device=decoder.device,
            dtype=decoder.dtype,
        )

    @property
    def own_weights(self) -> Mapping[str, WeightSlot]:
        return {
            f"{self.stored_name}.{name}": WeightSlot(f"score.{name}", 0, tuple(weight.shape))
            for name, weight in self.score.named_parameters()
        }

    @property
    def stored_name(self) -> str:
        """The layer's name in a checkpoint."""
        return "score"


class SequenceClassifier(Classifier):
    """Labels of a whole text, read at its last token."""

    with_bias = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput:
        """logits (B, labels) at the last token that is not padding, by config.json's pad_token_id;
        without one, or with inputs_embeds, at the last position.

        labels: (B,), or (B, labels) where there are several; see sequence_loss. The other inputs:
        model.heads.passes.Inputs. Raises ValueError.
        """
        states = self.states(input_ids, inputs)
        x = states.last_hidden_state
        batch, new = x.shape[:2]
        pad = self.config.pad_id
        if pad is None and batch != 1:
            raise ValueError(
                "config.json names no pad_token_id, so that the ends of several texts are unknown. "
                "State it there, or give one text at a time"
            )
        last = torch.full((batch,), new - 1, device=x.device)
        if pad is not None and input_ids is not None:
            last = (torch.arange(new, device=x.device) * (input_ids != pad)).argmax(-1)
        logits = self.score(x[torch.arange(batch, device=x.device), last])
        loss = None
        if labels is not None:
            loss = sequence_loss(logits, labels, self.config.problem_type)
        return output(states, logits, loss)


class TokenClassifier(Classifier):
    """One label a token."""

    with_bias = True

    @property
    def stored_name(self) -> str:
        return FAMILIES[self.files.model_type].token_classifier

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput:
        """logits (B, T, labels).

        labels: (B, T), -100 where the token does not count. The other inputs:
        model.heads.passes.Inputs. Raises ValueError.
        """
        states = self.states(input_ids, inputs)
        dropped = F.dropout(states.last_hidden_state, self.config.classifier_dropout, self.training)
        logits = self.score(dropped)
        loss = None if labels is None else class_loss(logits.float(), labels)
        return output(states, logits, loss)


def output(states: States, logits: Tensor, loss: Tensor | None) -> HeadOutput:
    return HeadOutput(loss, logits, states.hidden_states, states.attentions, states.cache)
