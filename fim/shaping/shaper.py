"""Turns a model's answer into a Suggestion: cuts it, hides it, and decides which text right of the
cursor it replaces.

The rules for where an answer ends are in ends.py. A `Shaper` applies them while an answer streams
(`done`), and makes a `Suggestion` of what is there (`shape`).
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from fim.attribution import Match
from fim.characters import STRANGE
from fim.context import CursorContext
from fim.formats import FimFormat
from fim.lines import only_closes, opens_block
from fim.secrets import holds_secret
from fim.shaping.bounds import Bounds, Extent, Reason
from fim.shaping.chat import tells_only, unwrapped
from fim.shaping.ends import RULES, first_stop
from fim.shaping.indentation import as_the_file
from fim.shaping.quotes import Open, begun_in, scan
from fim.shaping.rest_of_line import Fit, fit_right
from fim.shaping.sureness import CERTAIN, Sureness, sure_beginning
from fim.shaping.syntax import longest_whole

_ABOVE = 4000  # characters above the cursor that are read for what is open there
_BELOW = 2500
_LINES_BELOW = 6
_LINE_START = re.compile(r"^", re.MULTILINE)

Multiline = Literal["auto", "always", "never"]
# The names with which filters can be switched off (`off`), in the order in which they are asked.
FILTERS = (*RULES, "indentation", "fit-right", "syntax")


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
    opens = opens_block(before, context.language)
    if after.strip():  # `f(|)` asks for arguments, `{|}` for a body
        opens = before.rstrip().endswith("{")
    return "block" if opens else "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaper(Bounds):
    """The stop rules and filters for one cursor. Made by `Shaper.at` or `Shaper.for_span`.

    Once `done(text)` is true, `shape` gives the same for `text` as for every continuation of it.
    """

    crlf: bool
    lead: str = ""  # indentation that the suggestion begins with, for the document lacks it
    dismissed: tuple[str, ...] = ()  # suggestions that the user did not want here
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
        dismissed: tuple[str, ...] = (),
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
        opened, whole = _opened(context)
        return cls(
            extent=extent_at(context, multiline=multiline),
            one_line=multiline == "never",
            prefix=context.prefix,
            suffix=context.suffix,
            whole=whole,
            language=context.language,
            before=before,
            after=after,
            below=_lines_below(context),
            opened=opened,
            spare=_spare(context, opened),
            lead=context.lead,
            dismissed=dismissed,
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
            shaper,
            extent=extent,
            one_line=True,
            least_columns=least_columns,
            closing=closing,
            fixed=True,
        )

    def done(self, text: str, sureness: Sureness = CERTAIN) -> bool:
        """Whether more tokens after `text`, the whole answer so far, are pointless."""
        if sureness.of(len(text)) < self.min_confidence:
            return True  # it only sinks
        text = _plain(text)
        bare = unwrapped(text, self)
        if bare is None:
            return tells_only(text, self)
        return first_stop(bare, self) is not None

    def shape(self, text: str, sureness: Sureness = CERTAIN) -> Suggestion:
        """The suggestion made of an answer: of its longest beginning that the model was sure
        enough of."""
        reasons: list[Reason] = []
        if "\r\n" in text:
            sureness = sureness.without_returns(text)
        text = _plain(text)[: sureness.reach(self.min_confidence)]
        bare = unwrapped(text, self) or ""
        if bare != text:
            reasons.append("chat")
        sureness = sureness.behind(len(text) - len(bare))
        text = self._ended(bare, reasons)
        sure = sure_beginning(text, sureness, self)
        confidence = sureness.of(sure or len(text) or len(bare))
        unsure = sure < len(text) and bool(text.strip())
        if unsure:
            text = text[:sure]
            reasons.append("unsure")
        indented = text if self.fixed else as_the_file(text, self)
        if indented != text:
            reasons.append("indentation")
        fit = self._fitted(indented, reasons, half=unsure)
        text = fit.text
        replaced = fit.replaced
        # Keep trailing blanks only if text follows on the line.
        if not self.after[replaced:].strip():
            text = text.rstrip()
        hidden = True
        if not text.strip():
            if not unsure:
                reasons.append("blank")
        elif holds_secret(self.before, text, self.secrets):
            reasons.append("secret")
        elif any(same_text(text, other) for other in self.dismissed):
            reasons.append("dismissed")
        else:
            hidden = False
        if hidden:
            return Suggestion("", (0, 0), confidence, tuple(reasons), True)
        if self.lead and not self.after.strip():  # the blanks right of the cursor are in the lead
            replaced = len(self.after)
        return Suggestion(
            self.written(self.lead + text), (0, replaced), confidence, tuple(reasons), False
        )

    def written(self, text: str) -> str:
        """A text with the document's line ends."""
        text = text.replace("\r\n", "\n")
        return text.replace("\n", "\r\n") if self.crlf else text

    def _ended(self, text: str, reasons: list[Reason]) -> str:
        """The text up to where it ends."""
        # When the stream is over, its last line is a whole one; and what a rule has cut ends there.
        stop = first_stop(text, self)
        while stop or (stop := first_stop(text, self, whole=True)):
            if stop.cut >= len(text):
                break
            text = text[: stop.cut]
            reasons.append(stop.reason)
            stop = None
        # Another rule may have ended the answer right behind one.
        whole, broken, _ = text.partition("\ufffd")
        if broken and "half-character" not in self.off:
            reasons.append("half character")
        return whole

    def _fitted(self, text: str, reasons: list[Reason], *, half: bool) -> Fit:
        """The text with what it replaces, as long as it leaves the document's syntax whole.

        half: it is a beginning that the user may write on.
        """

        def fit(beginning: str) -> Fit:
            return fit_right(beginning, self, fixed=self.fixed)

        fitted = fit(text)
        if fitted.text.strip() and not self.fixed:
            whole = longest_whole(text, self, fit, half=half) or Fit("")
            if whole.text != fitted.text:
                fitted = whole._replace(reason=fitted.reason)
                if fitted.reason:
                    reasons.append(fitted.reason)
                reasons.append("breaks syntax")
                return fitted
        if fitted.reason:
            reasons.append(fitted.reason)
        return fitted


def same_text(text: str, other: str) -> bool:
    """Whether two suggestions say the same, as far as the shorter one goes."""
    one, two = "".join(text.split()), "".join(other.split())
    return bool(one and two) and (one.startswith(two) or two.startswith(one))


def _cursor_line(context: CursorContext) -> tuple[str, str]:
    """The cursor's line, left and right of the cursor, without its end."""
    before = context.prefix[context.prefix.rfind("\n") + 1 :]
    after = context.suffix.partition("\n")[0].removesuffix("\r")
    return before, after


def _lines_below(context: CursorContext) -> tuple[str, ...]:
    """The next lines under the cursor's that are not blank, without their ends."""
    under = context.suffix.partition("\n")[2][:_BELOW]
    return tuple(line.rstrip() for line in under.split("\n") if line.strip())[:_LINES_BELOW]


def _opened(context: CursorContext) -> tuple[tuple[Open, ...], bool]:
    """What is open at the cursor, and whether that was read from the text's first character."""
    prefix = context.prefix
    if len(prefix) <= _ABOVE and context.before == 0:
        return scan(prefix, context.language, roughly=True).opened, True
    start = max(0, len(prefix) - _ABOVE)
    edge = _LINE_START.search(prefix, start)
    prefix = prefix[edge.start() if edge else start :]
    if context.language == "python" and '"""' not in prefix and "'''" not in prefix:
        docstring = begun_in(context.suffix[:_BELOW], "python")
        if docstring:  # it begins above the window
            return docstring, False
    begun = begun_in(prefix, context.language)
    return scan(prefix, context.language, begun, roughly=True).opened, False


def _spare(context: CursorContext, opened: tuple[Open, ...]) -> int | None:
    """How much of what is open at the cursor the text behind it leaves open."""
    if context.language == "shellscript":  # the patterns of its `case` close nothing
        return None
    suffix = context.suffix[:_BELOW]
    spare = sum(each.kind != "comment" for each in opened)
    if opened and opened[-1].mark == opened[-1].closer and opened[-1].lines:
        # The next mark may begin another string: then this one is not closed yet.
        if context.language == "python":
            closed_below = bool(begun_in(suffix, "python"))
        else:
            closed_below = suffix.count(opened[-1].closer) % 2 == 1
        if not closed_below:
            opened = opened[:-1]
    below = scan(suffix, context.language, opened, roughly=True)
    return spare - (len(below.closers) - below.stray)


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
