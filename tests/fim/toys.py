"""Toy tokenizers, and contexts written as text with a cursor mark."""

from collections.abc import Sequence

from fim import CursorContext


class CharacterEncoder:
    """One token per code point, or `width` of them; special tokens only by name. Notes what it was
    given."""

    def __init__(self, specials: Sequence[str] = (), width: int = 1) -> None:
        self.specials = {token: 0x110000 + index for index, token in enumerate(specials)}
        self.width = width
        self.seen = 0

    def encode(self, text: str) -> list[int]:
        text.encode()  # as strict as a real tokenizer: a lone surrogate raises
        self.seen += len(text)
        return [ord(char) for char in text for _ in range(self.width)]

    def decode(self, ids: Sequence[int]) -> str:
        names = {id: token for token, id in self.specials.items()}
        return "".join(names.get(id) or chr(id) for id in ids)

    def token_id(self, token: str) -> int | None:
        return self.specials.get(token)


class SpacePairEncoder(CharacterEncoder):
    """Joins a line end with the indentation behind it into one token, as byte-level vocabularies
    do."""

    def encode(self, text: str) -> list[int]:
        ids = super().encode(text)
        return [
            id
            for id, before in zip(ids, [0, *ids], strict=False)
            if not (id == 32 and before in (10, 32))
        ]


def context_at(text: str, **fields: object) -> CursorContext:
    """The context of a whole text whose cursor is marked with ‸."""
    prefix, mark, suffix = text.partition("‸")
    assert mark, "no cursor in the text"
    return CursorContext(prefix=prefix, suffix=suffix, **fields)  # type: ignore[arg-type]
