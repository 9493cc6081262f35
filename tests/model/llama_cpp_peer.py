"""What llama.cpp makes of a GGUF file: a job as JSON on stdin, answers on stdout, under `make
peers`' interpreter.

The job: model, texts (tokenized with and without a look for sentinels), prompts (token ids),
max_tokens, stop_ids.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from llama_cpp import Llama

FLOAT32 = 0  # GGML's number for it: the cache is of half precision otherwise


def answers(
    model: str, texts: list[str], prompts: list[list[int]], max_tokens: int, stop_ids: list[int]
) -> Any:
    llama = Llama(model, n_ctx=0, n_threads=2, type_k=FLOAT32, type_v=FLOAT32, verbose=False)
    written = []
    for prompt in prompts:
        ids: list[int] = []
        for token in llama.generate(prompt, temp=0.0):
            if token in stop_ids or len(ids) == max_tokens:
                break
            ids.append(token)
        written.append(
            {"ids": ids, "text": llama.detokenize(ids, special=True).decode("utf-8", "replace")}
        )
    return {
        "plain": [llama.tokenize(text.encode(), add_bos=True, special=False) for text in texts],
        "with_sentinels": [
            llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts
        ],
        "written": written,
    }


if __name__ == "__main__":
    print(json.dumps(answers(**json.load(sys.stdin))))
