"""A tokenizer of the `tokenizers` library. Fits fim's Encoder protocol by its shape."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream

from model.errors import ModelError
from model.regular_files import read_text, reason

REPLACEMENT = "\ufffd"
# Some tokenizer.json list sentinels as added text (Qwen2.5-Coder's <|fim_prefix|>, DeepSeek-Coder's
# <｜fim▁hole｜>), which is found in plain text, too.
SENTINEL = re.compile(r"<(\|.+\||｜.+｜|\[.+\])>")


class Tokenizer:
    """Text <-> ids. Text is plain: a sentinel that is written in someone's code is none."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changing = threading.Lock()  # of what it takes for sentinels
        self._backend.no_padding()
        self._backend.no_truncation()
        added = self._backend.get_added_tokens_decoder().values()
        plain = [t.content for t in added if not t.special and SENTINEL.fullmatch(t.content)]
        self._backend.add_special_tokens([AddedToken(t, normalized=False) for t in plain])
        self._backend.encode_special_tokens = True

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer.json. Raises ModelError."""
        try:
            return cls(Backend.from_str(read_text(path)))
        except FileNotFoundError:
            raise ModelError(f"{path} is missing. Use a model folder that has one.") from None
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise ModelError(
                f"{path} cannot be read ({reason(error)}). Download the model again."
            ) from None

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without any special token. A lone surrogate counts as U+FFFD."""
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # the library wants valid Unicode
            clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            ids = self._backend.encode(clean, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt as remote clients send it: sentinels written out are sentinels.

        Thread-safe, and other threads run meanwhile: a long text takes seconds.
        """
        clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        with self._changing:
            self._backend.encode_special_tokens = False
            try:  # encode holds Python's lock, encode_batch does not
                (encoding,) = self._backend.encode_batch([clean], add_special_tokens=False)
            finally:
                self._backend.encode_special_tokens = True
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included as their names."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        """The id of one special token by its text, None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    @cached_property
    def texts(self) -> list[str | None]:
        """Each id's text; None for special tokens and for those that are no whole characters."""
        lead = self._lead
        ids = [[*lead, i] for i in range(self.vocab_size)]
        texts: list[str | None] = []
        for text in self._backend.decode_batch(ids, skip_special_tokens=True):
            own = text[len(lead) :]
            whole = own != "" and REPLACEMENT not in own
            texts.append(own if whole else None)
        return texts

    @cached_property
    def _lead(self) -> tuple[int, ...]:
        """The id of "a" where the decoder drops the space that a text begins with, as it does for
        SentencePiece's vocabularies; else nothing. Text that follows it keeps its space."""
        space = self._backend.token_to_id("▁")
        letter = self._backend.token_to_id("a")
        if space is None or letter is None or self.decode([letter, space]) != "a ":
            return ()
        if self.decode([space]) == " ":
            return ()
        return (letter,)

    def to_json(self) -> str:
        """The content of a tokenizer.json for this tokenizer."""
        return str(self._backend.to_str())

    def stream(self) -> TextStream:
        """For tokens that follow a prompt: the first keeps the space that it begins with."""
        return TextStream(self._backend, self._lead)


class TextStream:
    """Decodes ids one by one, holding back what is not yet a whole character."""

    def __init__(self, backend: Backend, lead: Sequence[int] = ()) -> None:
        """lead: ids that stand before the text and are not shown."""
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        for token_id in lead:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that became whole with this id; "" while a character is open."""
        return self._stream.step(self._backend, token_id) or ""
