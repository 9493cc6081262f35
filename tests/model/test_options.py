"""Every option of StarCoder2 and StableLM, and the tests that hold it: docs/options.md.

`python -m tests.model.test_options` writes the page anew.
"""

from __future__ import annotations

import pytest
import transformers

from tests.promises import ROOT, Promise, markdown, missing_tests

PAGE = ROOT / "docs" / "options.md"
TITLE = "Every option of StarCoder2 and StableLM"
ABOUT = """\
The rows are those of the reference documentation of both families in transformers and of
StarCoder2-7B's model card. The tests compare with transformers in float32 at toy sizes: fewer
key/value heads than heads, contexts longer than the window, both paddings. `python -m
tests.model.test_options` writes this page, and a test keeps it current."""

FAMILIES = "model/families/test_"
HEADS = "model/heads/test_"
DEFAULTS = f"{FAMILIES}defaults.py::test_an_empty_configuration_is_the_references"
LOGITS = f"{FAMILIES}parity.py::test_logits_are_those_of_transformers"
ROPE = f"{FAMILIES}rope.py::test_a_pass_of_any_length_is_that_of_transformers"
OUTPUTS = f"{HEADS}heads.py::test_outputs_losses_and_gradients_are_the_references"
INSIDE = f"{HEADS}heads.py::test_masks_positions_and_what_is_inside"
DROPPED = f"{HEADS}heads.py::test_in_training_the_same_seed_drops_the_same"
LAST = f"{HEADS}heads.py::test_without_a_padding_id_the_last_token_is_read"
SAVED = f"{HEADS}loading.py::test_what_is_saved_is_loaded_here_and_by_transformers"
PIECES = f"{HEADS}cache.py::test_in_pieces_is_in_one_pass"
NEW = f"{HEADS}training.py::test_new_weights_are_the_references"
IMPLEMENTATIONS = f"{HEADS}attention.py::test_all_implementations_are_equal"
PLACED = "model/placement/test_"
PRECISION = "model/precision/test_"

COMMON = [
    Promise("`vocab_size`, `hidden_size`, `intermediate_size`", [DEFAULTS, LOGITS]),
    Promise(
        "`num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`", [DEFAULTS, LOGITS]
    ),
    Promise("`hidden_act`", [DEFAULTS, LOGITS]),
    Promise(
        "`max_position_embeddings`",
        [DEFAULTS, "model/generation/test_generate.py::test_generation_ends_where_the_model_does"],
    ),
    Promise("`initializer_range`", [NEW]),
    Promise("`use_cache`", [PIECES]),
    Promise("`tie_word_embeddings`", [DEFAULTS, LOGITS, OUTPUTS]),
    Promise("`bos_token_id`", [SAVED]),
    Promise(
        "`eos_token_id`",
        [
            DEFAULTS,
            f"{FAMILIES}defaults.py::test_null_says_that_no_token_ends_a_text",
            "model/generation/test_generate.py::test_a_loaded_model_stops_at_its_own_end_of_text",
        ],
    ),
    Promise(
        "`pad_token_id`",
        [OUTPUTS, LAST, f"{HEADS}training.py::test_padding_is_trained_where_the_reference_does"],
    ),
    Promise("`rope_parameters`, `rope_scaling`, `rope_theta`", [DEFAULTS, ROPE]),
]
SECTIONS = {
    "StarCoder2's configuration": [
        *COMMON,
        Promise("`norm_epsilon`", [DEFAULTS, LOGITS]),
        Promise("`sliding_window`", [DEFAULTS, LOGITS, OUTPUTS]),
        Promise("`use_bias`", [DEFAULTS, LOGITS]),
        Promise(
            "`attention_dropout`, `residual_dropout`, `embedding_dropout`", [DEFAULTS, DROPPED]
        ),
    ],
    "StableLM's configuration": [
        *COMMON,
        Promise("`layer_norm_eps`", [DEFAULTS, LOGITS]),
        Promise("`partial_rotary_factor`", [DEFAULTS, LOGITS, ROPE]),
        Promise("`use_qkv_bias`, `qk_layernorm`, `use_parallel_residual`", [LOGITS, OUTPUTS]),
        Promise("`hidden_dropout`, `attention_dropout`", [DEFAULTS, DROPPED]),
        Promise(
            "`rope_pct`, `num_heads`, `norm_eps` of the first Stable Code",
            [
                f"{FAMILIES}rope.py::test_the_older_keys_of_stable_code_are_read",
                f"{FAMILIES}rope.py::test_older_keys_that_do_not_fit_are_refused",
            ],
        ),
    ],
    "Rotary embedding": [
        Promise(
            "default, linear, dynamic, yarn, longrope, llama3, each with all fields, in the older "
            "and the newer spelling, on both sides of the original length",
            [ROPE, f"{HEADS}heads.py::test_rope_types_on_both_sides_of_the_original_length"],
        ),
        Promise(
            "the same with a cache",
            [
                f"{FAMILIES}rope.py::test_a_cache_is_rotated_for_the_longest_sequence",
                f"{HEADS}cache.py::test_rope_types_on_both_sides_of_the_original_length",
            ],
        ),
        Promise(
            "an unknown type, or a field that is missing",
            [
                "model/weights/test_refused_folders.py::test_a_configuration_that_cannot_be_run_is_refused"
            ],
        ),
    ],
    "Heads": [
        Promise("the bare model", [OUTPUTS, SAVED]),
        Promise("the causal language model and its loss", [OUTPUTS, SAVED]),
        Promise(
            "`logits_to_keep` as a number or as indices", [f"{HEADS}heads.py::test_logits_to_keep"]
        ),
        Promise(
            "sequence classification: regression, one label, several",
            [OUTPUTS, f"{HEADS}heads.py::test_losses_of_sequences", LAST],
        ),
        Promise("token classification", [OUTPUTS, SAVED]),
        Promise(
            "a checkpoint of another head",
            [f"{HEADS}loading.py::test_what_is_missing_and_what_is_left_over_is_told"],
        ),
        Promise("resizing of the embeddings", [f"{HEADS}loading.py::test_embeddings_are_resized"]),
    ],
    "Inputs and outputs": [
        Promise("`attention_mask`, padding left and right", [OUTPUTS, INSIDE]),
        Promise(
            "masks of four dimensions",
            [f"{HEADS}cache.py::test_masks_of_four_dimensions_decide_alone"],
        ),
        Promise(
            "`position_ids`",
            [INSIDE, f"{HEADS}heads.py::test_a_packed_batch_keeps_its_texts_apart"],
        ),
        Promise("`inputs_embeds`", [f"{HEADS}heads.py::test_embeddings_in_place_of_ids"]),
        Promise(
            "`cache` (also `past_key_values`), `use_cache`, `cache_position`: only the new ids",
            [
                PIECES,
                f"{HEADS}cache.py::test_config_json_says_whether_there_is_a_cache",
                f"{HEADS}cache.py::test_a_cache_is_continued_in_several_ways",
            ],
        ),
        Promise(
            "`labels`, `shift_labels`, `num_items_in_batch`",
            [OUTPUTS, f"{HEADS}heads.py::test_losses_of_gradient_accumulation"],
        ),
        Promise("the hidden states of every layer, attention weights", [INSIDE]),
        Promise(
            "greedy generation of batches",
            [
                f"{HEADS}generation.py::test_greedy_batches_are_the_references",
                f"{HEADS}generation.py::test_a_row_is_as_if_it_were_alone",
            ],
        ),
        Promise(
            "sampled generation with a seed",
            [
                f"{HEADS}generation.py::test_what_may_be_drawn_is_as_in_the_reference",
                f"{HEADS}generation.py::test_tokens_come_as_often_as_in_the_reference",
            ],
        ),
        Promise(
            "what does not fit",
            [
                f"{HEADS}loading.py::test_bad_inputs_are_named",
                f"{HEADS}cache.py::test_what_does_not_fit_the_cache_is_named",
                f"{HEADS}generation.py::test_what_cannot_be_continued_is_named",
            ],
        ),
    ],
    "Attention": [
        Promise(
            "eager, SDPA, SDPA's flash kernel, flash-attn are equal",
            [IMPLEMENTATIONS, f"{HEADS}attention.py::test_all_implementations_run_after_a_cache"],
            "flash-attn by a stand-in that checks what it is called with",
        ),
        Promise(
            "tensor parallelism: two processes are one",
            [f"{PLACED}tensor_parallel.py::test_two_processes_are_one"],
        ),
    ],
    "Training": [
        Promise("losses and gradients", [OUTPUTS]),
        Promise("dropouts", [DROPPED]),
        Promise(
            "gradient checkpointing",
            [f"{HEADS}training.py::test_gradient_checkpointing_changes_nothing"],
        ),
        Promise("a new model from its configuration", [NEW]),
        Promise(
            "LoRA of every linear layer, merged and not, on few-bit weights too",
            [
                f"{HEADS}lora.py::test_an_adapter_is_without_effect_then_trained_then_merged",
                f"{HEADS}lora.py::test_an_adapter_on_quantized_weights",
            ],
        ),
    ],
    "Precision and placement": [
        Promise(
            "float32, float16, bfloat16",
            [
                f"{HEADS}precision.py::test_outputs_are_close_to_float32s",
                f"{HEADS}precision.py::test_gradients_in_half_floats_are_close_to_float32s",
            ],
        ),
        Promise(
            "8 bits and NF4 by bitsandbytes",
            [
                f"{PRECISION}against_transformers.py::test_logits_are_theirs_and_as_near_to_the_floats",
                f"{HEADS}precision.py::test_a_classifiers_own_weights_learn_on_a_frozen_decoder",
            ],
        ),
        Promise(
            '`quantization="auto"`',
            [f"{PRECISION}quantization.py::test_auto_takes_the_first_kind_that_fits_and_says_why"],
        ),
        Promise(
            "cuda, mps, cpu", [f"{PRECISION}devices.py::test_auto_is_a_gpu_where_there_is_one"]
        ),
        Promise(
            '`device_map`: "auto", several devices, CPU and disk',
            [
                f"{PLACED}placed_decoder.py::test_placed_is_whole",
                f"{PLACED}placed_heads.py::test_a_placed_head_is_whole",
            ],
        ),
        Promise(
            "weights that are missing, misnamed, misshapen, not finite",
            [
                f"{HEADS}loading.py::test_bad_weights_are_refused",
                "model/weights/test_checkpoint.py::test_a_tensor_that_does_not_fit_is_named",
            ],
        ),
    ],
    "The model card of StarCoder2-7B": [
        Promise(
            "the memory at each precision",
            [
                "model/test_footprint.py::test_starcoder2_7b_takes_a_little_less_than_its_card_says",
                "model/test_footprint.py::test_a_loaded_decoder_holds_what_its_configuration_says",
            ],
        ),
        Promise(
            "its snippets: [model.md](model.md)",
            [
                "model/test_model_page.py::test_the_code_runs_and_writes_what_the_reference_writes",
                "model/test_model_page.py::test_the_fim_prompt_is_the_products",
            ],
        ),
        Promise(
            "attribution of what is verbatim in the training data",
            [
                "fim/test_attribution.py::test_a_suggestion_that_makes_a_passage",
                "fim/test_attribution.py::test_a_suggestion_that_continues_a_passage",
            ],
        ),
        Promise(
            "its scores: HumanEval 35.4, HumanEval+ 29.9, DS-1000 27.8, CruxEval-I 34.6, GSM8K-PAL "
            "40.4, RepoBench-v1.1 72.07",
            note="takes the real checkpoint: `fimls eval --execute`",
        ),
    ],
}


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page()


def test_every_promise_is_held() -> None:
    assert not missing_tests(promise for rows in SECTIONS.values() for promise in rows)


@pytest.mark.parametrize("family", ["starcoder2", "stablelm"])
def test_no_key_of_the_reference_is_missing(family: str) -> None:
    title = {"starcoder2": "StarCoder2", "stablelm": "StableLM"}[family]
    told = " ".join(row.what for row in SECTIONS[f"{title}'s configuration"])
    reference = transformers.AutoConfig.for_model(family).to_dict()
    own = set(reference) - set(transformers.PretrainedConfig().to_dict())  # without everybody's
    assert len(own) > 15
    assert {key for key in own if f"`{key}`" not in told} == set()


def page() -> str:
    return markdown(TITLE, ABOUT, SECTIONS)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
