"""Turns a model's answer into a Suggestion: cuts it, hides it, and decides which text right of the
cursor it replaces.

The rules for where an answer ends are in fim.stops. A `Shaper` applies them while an answer streams
(`done`), and makes a `Suggestion` of what is there (`shape`).
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fim.attribution import Match
from fim.characters import STRANGE
from fim.context import CursorContext
from fim.formats import FimFormat
from fim.lines import brackets, only_closes, open_quote, opens_block, splits_word
from fim.secrets import holds_secret
from fim.shaping.sureness import CERTAIN, Sureness, sure_beginning
from fim.stops import RULES, Bounds, Extent, Reason, first_stop

Multiline = Literal["auto", "always", "never"]
# The names with which filters can be switched off (`off`), in the order in which they are asked.
FILTERS = (*RULES, "fit-right")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A completion to show. Accepting it gives prefix + text + suffix, less the replaced range."""

    text: str  # "" when hidden
    replace: tuple[int, int]  # (start, end) in code points from the cursor; (0, 0) only inserts
    confidence: float  # 0..1: how likely the author writes just that
    reasons: tuple[Reason, ...]  # the filters that fired, in their order
    hidden: bool
    match: Match | None = None  # where its text, or the text that it continues, also stands

    def attributed(self, match: Match, *, hide: bool) -> "Suggestion":
        """The same with its match; hidden if such suggestions are not wanted."""
        if not hide:
            return replace(self, match=match)
        return Suggestion("", (0, 0), self.confidence, (*self.reasons, "attributed"), True, match)


def extent_at(context: CursorContext, *, multiline: Multiline = "auto") -> Extent:
    """Whether to suggest the rest of one line or a block of lines.

    "auto": a block where the cursor's line is blank in front of it or ends in an opener there, and
    nothing but closers stand right of it; one line anywhere else.
    """
    if multiline != "auto":
        return "block" if multiline == "always" else "line"
    before, after = _cursor_line(context)
    if not only_closes(after):
        return "line"
    if not before.strip():
        return "block"
    opens = opens_block(before)
    if after.strip():  # `f(|)` asks for arguments, `{|}` for a body
        opens = before.rstrip().endswith("{")
    return "block" if opens else "line"


class _Fit(NamedTuple):
    """A text that goes with the rest of the cursor's line."""

    text: str
    replaced: int = 0  # characters right of the cursor that the text takes the place of
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaper(Bounds):
    """The stop rules and filters for one cursor. Made by `Shaper.at` or `Shaper.for_span`.

    Once `done(text)` is true, `shape` gives the same for `text` as for every continuation of it.
    """

    after: str  # the cursor's line right of the cursor
    crlf: bool
    min_confidence: float = 0.0  # an answer ends where the model is less sure than that
    secrets: frozenset[str] = frozenset()  # of the text, where the model saw a mask
    fixed: bool = False  # what is replaced is chosen already: what stands right of the cursor stays

    @classmethod
    def at(
        cls,
        context: CursorContext,
        format: FimFormat | None = None,
        *,
        multiline: Multiline = "auto",
        max_lines: int = 32,
        min_confidence: float = 0.0,
        off: frozenset[str] = frozenset(),
    ) -> "Shaper":
        """The rules at a context's cursor; text that looks like a sentinel of `format` is cut.

        off: names of FILTERS to leave out. Raises ValueError for another name.
        """
        if unknown := off.difference(FILTERS):
            names = ", ".join(sorted(unknown))
            raise ValueError(f"no filter is named {names}; there are {', '.join(FILTERS)}")
        before, after = _cursor_line(context)
        around = context.prefix + context.suffix
        known = set(STRANGE.findall(around)) - {"\r"}
        sentinels = format.texts if format else ()
        return cls(
            extent=extent_at(context, multiline=multiline),
            before=before,
            after=after,
            below=_line_below(context),
            crlf=_has_crlf(context),
            known=frozenset(known),
            sentinels=tuple(text for text in sentinels if text not in around),
            max_lines=max_lines,
            min_confidence=min_confidence,
            least_columns=0,
            closing="",
            secrets=context.secrets,
            off=off,
        )

    @classmethod
    def for_span(
        cls,
        context: CursorContext,
        format: FimFormat | None = None,
        *,
        extent: Extent = "span",
        max_lines: int = 64,
        least_columns: int = 0,
        closing: str = "",
    ) -> "Shaper":
        """The rules for text between two given pieces: it goes on until the model ends it.

        Nothing of the suffix is replaced. extent "line" ends the text with its first line, too.
        """
        shaper = cls.at(context, format, max_lines=max_lines)
        return replace(
            shaper, extent=extent, least_columns=least_columns, closing=closing, fixed=True
        )

    def done(self, text: str, sureness: Sureness = CERTAIN) -> bool:
        """Whether more tokens after `text`, the whole answer so far, are pointless."""
        if sureness.of(len(text)) < self.min_confidence:
            return True  # it only sinks
        return first_stop(_plain(text), self) is not None

    def shape(self, text: str, sureness: Sureness = CERTAIN) -> Suggestion:
        """The suggestion made of an answer: of its longest beginning that the model was sure
        enough of."""
        text = _plain(text)
        reasons: list[Reason] = []
        # When the stream is over, its last line is a whole one.
        stop = first_stop(text, self) or first_stop(text + "\n", self)
        if stop and stop.cut < len(text):
            text = text[: stop.cut]
            reasons.append(stop.reason)
        sure = sure_beginning(text, sureness, self.min_confidence, open_quote(self.before))
        confidence = sureness.of(sure or len(text))
        unsure = sure < len(text) and bool(text.strip())
        if unsure:
            text = text[:sure]
            reasons.append("unsure")
        # Another rule may have ended the answer right behind one.
        whole, broken, _ = text.partition("\ufffd")
        if broken:
            text = whole
            reasons.append("half character")
        text, replaced, reason = self._fit_right(text)
        if reason:
            reasons.append(reason)
        # Keep trailing blanks only if text follows on the line.
        if not self.after[replaced:].strip():
            text = text.rstrip()
        hidden = not text.strip()
        if hidden and not unsure:
            reasons.append("blank")
        elif holds_secret(self.before, text, self.secrets):
            hidden = True
            reasons.append("secret")
        if hidden:
            text = ""
            replaced = 0
        if self.crlf:
            text = text.replace("\n", "\r\n")
        return Suggestion(text, (0, replaced), confidence, tuple(reasons), hidden)

    def _fit_right(self, text: str) -> _Fit:
        """Fit the text to the rest of the cursor's line, so that nothing stands twice.

        A closer right of the cursor counts as written twice only when the text's own closes
        something that was opened before the cursor: `g(x)` in front of `)` stays whole.
        """
        rest = self.after.strip()
        if not rest or "fit-right" in self.off:
            return _Fit(text)
        depths, closers = brackets(text, open_quote(self.before))
        repeated = _repeated(text, rest, depths)
        if repeated:
            return self._without_repeated(text, repeated)
        if self.fixed:
            for index in closers:
                if text[index] == rest[0]:
                    return _Fit(text[:index], 0, "repeats right")
            return _Fit(text)
        written = _closers_written(text, rest, closers)
        if not written:
            return _Fit(text)
        return _Fit(text, self._blanks_after + written, "replaces right")

    def _without_repeated(self, text: str, repeated: int) -> _Fit:
        """The text, whose last characters the rest of the line has, too."""
        kept = text[: len(text) - repeated]
        # A closer on a line of its own takes the place of the one on the right, which is misplaced.
        own_line = "\n" in kept and not kept.rpartition("\n")[2].strip()
        if own_line and not self.fixed:
            return _Fit(text, self._blanks_after + repeated, "replaces right")
        if self._blanks_after and not own_line:
            kept = kept.rstrip(" \t")
        return _Fit(kept, 0, "repeats right")

    @property
    def _blanks_after(self) -> int:
        return len(self.after) - len(self.after.lstrip())


def _repeated(text: str, rest: str, depths: list[int]) -> int:
    """How many characters at the end of `text` are the beginning of `rest`: the most that begin
    outside of what the text itself opened, and that divide no word."""
    for size in range(min(len(rest), len(text)), 0, -1):
        start = len(text) - size
        if depths[start] or not text.endswith(rest[:size]):
            continue
        if not splits_word(text, start) and not splits_word(rest, size):
            return size
    return 0


def _closers_written(text: str, rest: str, closers: list[int]) -> int:
    """How many characters of `rest` the text writes in its course, from each closer on."""
    written = 0
    for index in closers:
        while index < len(text) and written < len(rest) and text[index] == rest[written]:
            index += 1
            written += 1
    return written


def _cursor_line(context: CursorContext) -> tuple[str, str]:
    """The cursor's line, left and right of the cursor, without its end."""
    before = context.prefix[context.prefix.rfind("\n") + 1 :]
    after = context.suffix.partition("\n")[0].removesuffix("\r")
    return before, after


def _line_below(context: CursorContext) -> str:
    """The next line under the cursor's that is not blank, without its end, or ""."""
    under = context.suffix.partition("\n")[2]
    code = under.lstrip()
    start = under.rfind("\n", 0, len(under) - len(code)) + 1
    return under[start:].partition("\n")[0].rstrip()


def _has_crlf(context: CursorContext) -> bool:
    r"""Whether the line end that is nearest to the cursor, or the first one after it, is \r\n."""
    around = context.prefix + context.suffix
    end = context.prefix.rfind("\n")
    if end < 0:
        end = around.find("\n")
    return end > 0 and around[end - 1] == "\r"


def _plain(text: str) -> str:
    r"""The text with \n line ends. A \r at the end may be half of one."""
    return text.replace("\r\n", "\n").removesuffix("\r")
