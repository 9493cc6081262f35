"""The bundled model's tokenizer: byte-level BPE with StarCoder's pre-tokenization and StarCoder2's special tokens.

    python -m training.tokenizer training/data 8192
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (  # StarCoder2's, in its order (tokenizer of bigcode/starcoder2-3b)
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> "
    "<jupyter_script> <empty_output> <code_to_intermediate> <intermediate_to_code> <pr> <pr_status> "
    "<pr_is_merged> <pr_base> <pr_file> <pr_base_code> <pr_diff> <pr_diff_hunk> <pr_comment> <pr_event_id> "
    "<pr_review> <pr_review_state> <pr_review_comment> <pr_in_reply_to_review_id> "
    "<pr_in_reply_to_comment_id> <pr_diff_hunk_comment_line> <NAME> <EMAIL> <KEY> <PASSWORD>"
).split()


def texts(path: Path) -> list[str]:
    with path.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def train(corpus: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    return tokenizer


def main(data: Path, vocab_size: int) -> None:
    corpus = texts(data / "train.jsonl")
    random.Random(0).shuffle(corpus)
    tokenizer = train(corpus[: len(corpus) // 4], vocab_size)  # a quarter of the files fixes the merges as well
    tokenizer.save(str(data / "tokenizer.json"))
    held_out = texts(data / "validation.jsonl")
    ids = sum(len(e.ids) for e in tokenizer.encode_batch(held_out))
    print(f"{vocab_size} entries, {sum(map(len, held_out)) / ids:.2f} characters a token on the validation packages")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
