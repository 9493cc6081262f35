"""Fits the weights of model.generation.copying for one model, on code that it was not trained on.

    python -m training.copying model/bundled training/data/validation.jsonl [--samples 400]

At every token of the true answers to infilling prompts (half of them lines, half ends of lines) the
mixture's negative log-likelihood is minimized; the weights go into the model's fimls.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch

from fim.context import around_cursor
from fim.evaluation.samples import Span, rest_of_line, whole_line
from fim.formats import resolve
from fim.prompt import build_prompt
from model import LoadedModel, load_model
from model.errors import ModelError
from model.generation.copying import CopyWeights, features
from model.generation.text_matches import TEXT_START, TextMatches, TokenIndex
from training.corpus.folder import Row
from training.data import read_documents

ANSWER_TOKENS = 48
START = CopyWeights(-3.0, 0.8, 0.8, -0.4)


def draw(documents: list[Row], count: int) -> list[tuple[str, Span]]:
    """Texts and middles; every package counts alike."""
    rng, packages = random.Random(0), defaultdict[str, list[str]](list)
    for document in documents:
        packages[document.package].append(document.text)
    names, found = sorted(packages), []
    while len(found) < count:
        text = rng.choice(packages[rng.choice(names)])
        start, stop = (whole_line if len(found) % 2 else rest_of_line)(text, rng)
        if text[start:stop].strip():
            found.append((text, (start, stop)))
    return found


@torch.no_grad()
def observe(model: LoadedModel, samples: list[tuple[str, Span]]) -> torch.Tensor:
    """(observations, 6): the features, then the true token's probability by the votes and by the
    model."""
    preferred = model.folder.preferences
    sentinels = resolve(model.tokenizer, config=model.folder.config)
    end = model.tokenizer.encode("\n")
    rows = []
    for text, (start, stop) in samples:
        budget = model.decoder.config.max_positions - 2 * ANSWER_TOKENS
        context = around_cursor(
            text[:start] + text[stop:], start, encoder=model.tokenizer, token_budget=budget
        )
        prompt = build_prompt(
            context, sentinels, model.tokenizer, preferred.layout, heal=bool(preferred.heal_tokens)
        )
        answer = [*model.tokenizer.encode(prompt.begin_with + text[start:stop]), *end][
            :ANSWER_TOKENS
        ]
        ids = torch.tensor([[*prompt.ids, *answer]], device=model.decoder.device)
        kept = (
            model.decoder(ids, logits_to_keep=len(answer) + 1)
            .logits[0, :-1]
            .float()
            .softmax(-1)
            .cpu()
        )
        matches = TextMatches(TokenIndex([TEXT_START, *prompt.ids], prompt.stop_ids))
        for token, probabilities in zip(answer, kept, strict=True):
            match, votes = matches.votes()
            if votes:
                total = sum(votes.values())
                seen = features(match, max(votes.values()) / total, float(probabilities.max()))
                rows.append((*seen, votes.get(token, 0) / total, float(probabilities[token])))
            matches.push(token)
    return torch.tensor(rows, dtype=torch.float64)


def fit(observed: torch.Tensor) -> tuple[CopyWeights, float, float]:
    """observed as `observe` gives it -> weights, and nats a token without and with them."""
    inputs, by_votes, by_model = observed[:, :4], observed[:, 4], observed[:, 5]
    weights = torch.tensor(list(asdict(START).values()), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        share = torch.sigmoid(inputs @ weights)
        return -(share * by_votes + (1 - share) * by_model + 1e-9).log().mean()

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)
    with torch.no_grad():
        return CopyWeights(*weights.tolist()), float(-(by_model + 1e-9).log().mean()), float(loss())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--samples", type=int, default=400)
    options = parser.parse_args()
    try:
        model = load_model(options.model)
    except ModelError as error:
        raise SystemExit(str(error)) from None
    observed = observe(model, draw(read_documents(options.documents), options.samples))
    if not len(observed):
        raise SystemExit("No answer in these documents has a match: name files with more code.")
    weights, before, after = fit(observed)
    path = model.folder.path / "fimls.json"
    preferences = json.loads(path.read_text()) if path.exists() else {}
    preferences["copying"] = {name: round(value, 3) for name, value in asdict(weights).items()}
    path.write_text(json.dumps(preferences, indent=2) + "\n")
    print(
        f"{len(observed)} tokens with a match: {before:.3f} nats a token by the model, "
        f"{after:.3f} mixed; {weights}"
    )


if __name__ == "__main__":
    main()
