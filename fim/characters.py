"""Characters that cannot be seen."""

import re

# Control and format characters, private ones, those of no width and those that look like a blank;
# among them the ones that turn the direction of text (CVE-2021-42574, "Trojan Source") and the
# variation selectors that can carry a hidden text. Behind a symbol or an emoji a selector chooses
# how that looks. U+3000 is the blank of East Asian texts.
STRANGE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u070f\u0890\u0891\u08e2\u115f\u1160\u1680"
    "\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3164\ue000-\uf8ff"
    "\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\ufdd0-\ufdef\ud800-\udfff"
    "\U00013430-\U0001343f\U00016fe4\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
    "|(?<![\xa9\xae\u203c-\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
)


def escaped(text: str) -> str:
    r"""A text for a terminal or a table: what cannot be seen is written as \x1b, \u202e and so on.

    Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return STRANGE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
