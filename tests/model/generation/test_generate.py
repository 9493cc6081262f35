"""From logits to tokens: how they are drawn, where generation ends, and what the cache holds at
every moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model import LoadedModel, Tokenizer
from model.generation.generate import GenerationOptions, Token, generate, prefill
from model.generation.sampling import Sampler, Sampling, candidates
from tests.model.toys import END, MIDDLE, Parrot, read_ids, toy_config

PROMPT = [80, 90, 100, 110, 120]
P = [0.15, 0.5, 0.05, 0.3]


def draw(m: LoadedModel, sampling: Sampling) -> list[Token]:
    return list(m.generate(PROMPT, max_new_tokens=30, sampling=sampling))


def ids_of(tokens: list[Token]) -> list[int]:
    return [t.id for t in tokens]


# Sampling.


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1.0, [0.15, 0.5, 0.05, 0.3]),
        (0.96, [0.15, 0.5, 0.05, 0.3]),
        (0.94, [0.15, 0.5, 0.0, 0.3]),
        (0.81, [0.15, 0.5, 0.0, 0.3]),
        (0.79, [0.0, 0.5, 0.0, 0.3]),
        (0.51, [0.0, 0.5, 0.0, 0.3]),
        (0.5, [0.0, 0.5, 0.0, 0.0]),
        (1e-9, [0.0, 0.5, 0.0, 0.0]),
    ],
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float, kept: list[float]) -> None:
    found = np.zeros(len(P))
    tokens, probabilities = candidates(np.log(P), Sampling(1.0, top_p))
    found[tokens] = probabilities
    assert found.tolist() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(temperature=0.5), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        (Sampling(temperature=1.0, top_p=0.79), [0.0, 0.625, 0.0, 0.375]),
    ],
)
def test_tokens_come_as_often_as_they_should(sampling: Sampling, expected: list[float]) -> None:
    sample, draws = Sampler(sampling), 2000
    drawn = [sample(np.log(P)) for _ in range(draws)]
    for token, share in enumerate(expected):
        assert abs(drawn.count(token) - draws * share) <= 4 * math.sqrt(draws * share * (1 - share))


def test_the_seed_decides(talkative: LoadedModel) -> None:
    hot = [draw(talkative, Sampling(temperature=1.0, seed=seed)) for seed in (1, 1, 2, 2**63 - 1)]
    assert hot[0] == hot[1]
    assert len({tuple(ids_of(t)) for t in hot}) == 3


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1.0, top_p=1e-9), Sampling(temperature=1e-4, seed=5)]
)
def test_nothing_left_to_chance_is_greedy(talkative: LoadedModel, sampling: Sampling) -> None:
    assert ids_of(draw(talkative, sampling)) == ids_of(draw(talkative, Sampling()))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, top_p=0.9, seed=3)])
def test_log_probabilities_are_those_of_scoring_the_text_again(
    talkative: LoadedModel, sampling: Sampling
) -> None:
    tokens = draw(talkative, sampling)
    assert len(tokens) == 30
    with torch.inference_mode():
        logits = talkative.decoder(torch.tensor([PROMPT + ids_of(tokens)])).logits[0]
    scores = torch.log_softmax(logits, dim=-1)[len(PROMPT) - 1 : -1]
    again = [float(s[t.id]) for s, t in zip(scores, tokens, strict=True)]
    assert [t.logprob for t in tokens] == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
)
def test_impossible_sampling_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"temperature .* must be >= 0, top_p .* in \(0, 1\]"):
        Sampling(**values)


# Where generation ends.


@pytest.fixture
def say(byte_tokenizer: Tokenizer) -> Callable[..., list[Token]]:
    """Generates with a parrot that says "abcdef" behind <fim_middle>."""

    def run(ids: list[int], parrot: Parrot | None = None, **options: Any) -> list[Token]:
        parrot = parrot or Parrot(byte_tokenizer.encode("abcdef"))
        options = {"max_new_tokens": 100, "stop_ids": {END}} | options
        return list(
            generate(
                parrot,
                parrot.new_cache(),
                ids,
                byte_tokenizer.stream(),
                GenerationOptions(**options),
            )
        )

    return run


Say = Callable[..., list[Token]]


def text(tokens: list[Token]) -> str:
    return "".join(t.text for t in tokens)


def test_generation_ends_at_a_stop_id_which_is_not_said(
    say: Say, byte_tokenizer: Tokenizer
) -> None:
    [d] = byte_tokenizer.encode("d")
    assert text(say([MIDDLE])) == "abcdef"
    assert text(say([MIDDLE], stop_ids={d, END})) == "abc"
    assert text(say([MIDDLE], stop_ids=set(byte_tokenizer.encode("a")))) == ""
    assert ids_of(say([MIDDLE], stop_ids=(), max_new_tokens=8)) == [
        *byte_tokenizer.encode("abcdef"),
        END,
        END,
    ]


def test_a_loaded_model_stops_at_its_own_end_of_text(byte_tokenizer: Tokenizer) -> None:
    m = Parrot(byte_tokenizer.encode("ab")).as_model(byte_tokenizer)
    assert text(list(m.generate([MIDDLE], max_new_tokens=10**12))) == "ab"
    assert (
        text(list(m.generate([MIDDLE], max_new_tokens=9, stop_ids=byte_tokenizer.encode("b"))))
        == "a"
    )


@pytest.mark.parametrize(
    ("limit", "said"), [(-1, ""), (0, ""), (1, "a"), (6, "abcdef"), (7, "abcdef")]
)
def test_generation_ends_at_the_limit(say: Say, limit: int, said: str) -> None:
    assert text(say([MIDDLE], max_new_tokens=limit)) == said


@pytest.mark.parametrize(("prompt", "said"), [(11, "abcdef"), (12, "abcde"), (15, "ab"), (16, "a")])
def test_generation_ends_where_the_model_does(
    say: Say, byte_tokenizer: Tokenizer, prompt: int, said: str
) -> None:
    """16 positions: the token behind the last one is still said, for nothing has to be computed
    behind it."""
    parrot = Parrot(byte_tokenizer.encode("abcdef"), toy_config(max_positions=16))
    assert text(say([9] * (prompt - 1) + [MIDDLE], parrot)) == said


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "the prompt is empty"), ([9] * 17, "a prompt of 17 tokens does not fit the model's 16")],
)
def test_a_prompt_that_cannot_be_run_is_refused(say: Say, ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        say(ids, Parrot(config=toy_config(max_positions=16)))


def test_a_cache_that_holds_the_whole_prompt_is_refused(talkative: LoadedModel) -> None:
    cache = talkative.decoder.new_cache()
    with torch.inference_mode():
        prefill(talkative.decoder, cache, PROMPT, None, 512)
        with pytest.raises(ValueError, match="at least one id to compute"):
            prefill(talkative.decoder, cache, PROMPT, None, 512)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_should_stop_ends_generation_between_tokens(byte_tokenizer: Tokenizer, count: int) -> None:
    m, got = Parrot(byte_tokenizer.encode("abcdef")).as_model(byte_tokenizer), []
    for token in m.generate([MIDDLE], max_new_tokens=6, should_stop=lambda: len(got) >= count):
        got.append(token)
    assert text(got) == "abcdef"[:count]


@pytest.mark.parametrize("layer", range(6))  # of three chunks of two layers each
def test_should_stop_ends_a_prefill_at_any_layer_and_keeps_whole_chunks(
    byte_tokenizer: Tokenizer, layer: int
) -> None:
    ids, parrot, asked = list(range(8, 38)), Parrot(byte_tokenizer.encode("a")), []
    cache = parrot.new_cache()

    def stop() -> bool:
        asked.append(1)
        return len(asked) > layer

    run = generate(
        parrot,
        cache,
        ids,
        byte_tokenizer.stream(),
        GenerationOptions(max_new_tokens=1, should_stop=stop, prefill_chunk=10),
    )
    assert list(run) == []
    assert read_ids(cache) == ids[: layer // 2 * 10]


def test_the_cache_always_holds_a_prefix_of_what_was_said(byte_tokenizer: Tokenizer) -> None:
    parrot, ids = Parrot(byte_tokenizer.encode("abcdef")), [40, 41, MIDDLE]
    cache = parrot.new_cache()
    for token in generate(
        parrot, cache, ids[:], byte_tokenizer.stream(), GenerationOptions(max_new_tokens=6)
    ):
        assert read_ids(cache) == ids
        ids.append(token.id)
