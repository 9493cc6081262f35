"""The bundled model's tokenizer: byte-level BPE with StarCoder's pre-tokenization and StarCoder2's
special tokens.

    python -m training.tokenizer training/data 8192 --compare 49152

As in StarCoder, a word takes the one space before it, so the indentation of a line is its newline
and all its spaces but the last: a newline and 3, 7, 11, 15 ... spaces before ` return`, one token
each (and two newlines and 3 ... after a blank line). Where the text ends in its indentation, as
before a cursor, all of its spaces are in the token. Training finds these merges by itself, being
the commonest runs of Python; what it has not found is reported.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus.folder import CorpusError, read_manifest, rows

SPECIAL_TOKENS = (  # StarCoder2's, in its order (tokenizer of bigcode/starcoder2-3b)
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep> "
    "<issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> "
    "<jupyter_script> <empty_output> <code_to_intermediate> <intermediate_to_code> <pr> "
    "<pr_status> "
    "<pr_is_merged> <pr_base> <pr_file> <pr_base_code> <pr_diff> <pr_diff_hunk> <pr_comment> "
    "<pr_event_id> "
    "<pr_review> <pr_review_state> <pr_review_comment> <pr_in_reply_to_review_id> "
    "<pr_in_reply_to_comment_id> <pr_diff_hunk_comment_line> <NAME> <EMAIL> <KEY> <PASSWORD>"
).split()
INDENTATIONS = tuple("\n" + " " * (width - 1) for width in (4, 8, 12, 16, 20))


def train(corpus: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def split_indentations(tokenizer: Tokenizer) -> list[str]:
    """Those of INDENTATIONS that take more than one token."""
    return [run for run in INDENTATIONS if tokenizer.encode(f"{run} x").offsets[0] != (0, len(run))]


def characters_per_token(tokenizer: Tokenizer, held_out: list[str]) -> float:
    return sum(map(len, held_out)) / sum(len(e.ids) for e in tokenizer.encode_batch(held_out))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.tokenizer", description="Trains the tokenizer."
    )
    parser.add_argument(
        "data", type=Path, help="the corpus folder; tokenizer.json is written into it"
    )
    parser.add_argument("vocab_size", type=int)
    parser.add_argument(
        "--compare", type=int, help="train one of this many entries too, and report it beside"
    )
    a = parser.parse_args(arguments)
    try:
        read_manifest(a.data)
        corpus, held_out = (
            [row.text for row in rows(a.data / f"{split}.jsonl")]
            for split in ("train", "validation")
        )
    except CorpusError as error:
        print(f"tokenizer: {error}", file=sys.stderr)
        return 1
    random.Random(0).shuffle(corpus)
    del corpus[max(len(corpus) // 4, 1) :]  # a quarter of the files fixes the merges as well
    for vocab_size in filter(None, (a.vocab_size, a.compare)):
        tokenizer = train(corpus, vocab_size)
        if vocab_size == a.vocab_size:
            partial = a.data / "tokenizer.json.partial"
            tokenizer.save(str(partial))
            partial.replace(a.data / "tokenizer.json")
        print(
            f"{vocab_size} entries, {characters_per_token(tokenizer, held_out):.2f} characters a "
            "token on the "
            "validation packages; indentations of several tokens: "
            f"{split_indentations(tokenizer) or 'none'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
