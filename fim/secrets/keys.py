"""The places in a line of text that look like a key, a token or a password.

Three kinds are known: values that begin as a well-known issuer's do, passwords in addresses, and
values without a sense behind a name that speaks of secrets. Whether letters make sense is asked of
the pairs of letters that code and English are full of. The issuers' forms are in their public
documents; gitleaks and detect-secrets look for much the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

Spans = tuple[tuple[int, int], ...]

_ISSUERS = r"""
(?:A3T[A-Z0-9]|AKIA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA|ASIA|ABIA|ACCA)[A-Z2-7]{LEAST:12}
|gh[opsur]_[A-Za-z0-9]{LEAST:8}|github_pat_\w{LEAST:8}
|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct)-[\w-]{LEAST:8}|GR1348941[\w-]{LEAST:8}
|xox[abeoprs]-[\w-]{LEAST:8}|xoxe\.xox[bp]-[\w-]{LEAST:8}|xapp-\d-[\w-]{LEAST:8}
|AC[a-f0-9]{32}\b|hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{LEAST:16}
|discord(?:app)?\.com/api/webhooks/[\w/-]{LEAST:16}
|[rs]k_(?:live|test|prod)_[A-Za-z0-9]{LEAST:8}|whsec_[\w+/=]{LEAST:12}
|sk-(?:proj|ant|or|svcacct|admin|lf)-[\w-]{LEAST:8}|sk-[A-Za-z0-9]{32,}|sk-[A-Za-z0-9]{16,24}T3BlbkFJ
|AIza[\w-]{LEAST:16}|ya29\.[\w-]{LEAST:12}|GOCSPX-[\w-]{LEAST:8}|1//0[\w-]{24,}
|npm_[A-Za-z0-9]{LEAST:16}|pypi-AgE[\w-]{LEAST:8}|rubygems_[a-f0-9]{LEAST:16}|dckr_[po]at_[\w-]{LEAST:8}
|hf_[A-Za-z0-9]{LEAST:16}|gsk_[A-Za-z0-9]{LEAST:16}|r8_[A-Za-z0-9]{LEAST:20}|pplx-[a-f0-9]{LEAST:16}
|xai-[A-Za-z0-9]{LEAST:20}|nvapi-[\w-]{LEAST:12}|tvly-[\w-]{LEAST:12}
|SG\.[\w-]{16,}\.[\w-]{LEAST:8}|key-[a-f0-9]{32}|SK[a-f0-9]{32}|xkeysib-[a-f0-9]{LEAST:8}
|[a-f0-9]{32}-us\d{1,2}\b|\d{8,10}:AA[\w-]{24,}
|dapi[a-f0-9]{32}|do[opr]_v1_[a-f0-9]{LEAST:8}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{LEAST:8}
|sq0(?:atp|csp)-[\w-]{LEAST:8}|EAAA[\w-]{48,}|hv[sbr]\.[\w-]{LEAST:12}|dp\.(?:pt|st|ct|scim|audit)\.\w{LEAST:8}
|lin_(?:api|oauth)_[A-Za-z0-9]{LEAST:8}|ntn_[A-Za-z0-9]{LEAST:16}|secret_[A-Za-z0-9]{32,}
|PMAK-[a-f0-9-]{LEAST:12}|gl(?:c|sa)_[\w+/=]{LEAST:16}|eyJrIjoi[\w+/=]{LEAST:16}|ATATT3[\w=-]{LEAST:8}
|fig[dpuh]_[\w-]{LEAST:12}|NR(?:AK|RA|JS)-[\w-]{LEAST:8}|dt0[a-z]\d\d\.[A-Z0-9]{8,}\.\w{LEAST:8}
|pscale_(?:tkn|pw|oauth)_[\w.=-]{LEAST:8}|pul-[a-f0-9]{LEAST:24}|pnu_[A-Za-z0-9]{LEAST:16}
|sntry[su]_[\w+/=-]{LEAST:8}|sbp_[a-f0-9]{LEAST:16}|fo1_[\w-]{LEAST:16}|\w{14}\.atlasv1\.[\w=-]{LEAST:8}
|LTAI[A-Za-z0-9]{LEAST:12}|AKID[A-Za-z0-9]{LEAST:16}|AGE-SECRET-KEY-1[A-Z0-9]{LEAST:8}|AKCp[A-Za-z0-9]{LEAST:20}
|tfp_[\w.=-]{LEAST:12}|ops_eyJ[\w+/=]{LEAST:8}|tskey-[a-z]+-[\w-]{LEAST:8}|CCIPAT_\w{LEAST:8}
|nfp_[A-Za-z0-9]{LEAST:16}|sq[pua]_[a-f0-9]{LEAST:16}|CLOJARS_[a-z0-9]{LEAST:16}|bkua_[a-f0-9]{LEAST:16}
|EZ[AT]K[A-Za-z0-9]{LEAST:24}|FLWSECK(?:_TEST)?-[a-h0-9]{LEAST:8}|fio-u-[\w-]{LEAST:16}|rdme_[a-z0-9]{LEAST:16}
|shippo_(?:live|test)_[a-f0-9]{LEAST:8}|p8e-[a-z0-9]{LEAST:16}|HRKU-[\w-]{LEAST:12}|v1\.0-[a-f0-9]{24}-[a-f0-9]{LEAST:24}
|eyJ[\w-]{10,}\.(?:eyJ|e30)[\w-]*(?:\.[\w-]*)?
"""


def _issued(most: int) -> re.Pattern[str]:
    """Of values with as many characters as they have at least, or with `most` where that is less:
    of a value that is being typed less is known."""
    forms = re.sub(r"\{LEAST:(\d+)\}", lambda least: f"{{{min(int(least[1]), most)},}}", _ISSUERS)
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{''.join(forms.split())})", re.ASCII)


_ISSUED = _issued(64)
_ISSUED_SO_FAR = _issued(3)
# What holds an issued value is a run of these, and most runs in code are shorter.
_RUN = re.compile(r"[A-Za-z0-9_+/=.:~-]{12,}")

# The words in names of secrets. Those of the second kind are in many other names, too.
_SURE = (
    r"pass(?:word|wd|phrase|code|wort)|passw\b|pwd|secret|(?:api|access|private|account|auth"
    r"|encrypt(?:ion)?|signing|master|shared|storage|service|ssh|consumer|app|license|deploy)"
    r"[_.-]?key|token|credential|bearer|authorization"
)
_UNSURE = r"pass|key|auth|salt|cookie|session|signature|webhook|dsn|pat|jwt|cred|otp|basic"
_WORDS = re.compile("pass|pwd|key|auth|secret|token|cred|salt|cookie|session|signature|webhook"
                    "|dsn|pat|jwt|otp|basic|bearer|://")  # fmt: skip
_NAME = re.compile(rf"(?:(?P<sure>{_SURE})|{_UNSURE})[\w.-]{{0,32}}?(?![\w-])", re.IGNORECASE)
_BETWEEN = re.compile(
    r"""[\\"'`\])]{0,4}                             # the end of a quoted name or an index
    (?:\s{0,8}:\s?[A-Za-z_][\w.,|?\[\] ]{0,32}?(?=\s?=))?  # a type
    (?P<sign>\s{0,32}(?::=|=>|<-|[=:,(>]|\bvalue\s?[=:]|\bor\b|\|\||\?\?|\s)
    (?:\s{0,8}(?:value\s?[=:]|\(|or\b))?\s{0,8})
    (?P<call>(?:new\s)?[\w.]{1,40}\(\s?(?=[rbfuRBFU]{0,2}["'`]))?  # a call, as of bytes.fromhex
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:Bearer|Basic|Token|Digest)\s+", re.IGNORECASE)
_QUOTE = re.compile(r"""[rRbBfFuU@$]{0,2}(\\?["'`]{3}|\\?["'`])""")
_BARE = re.compile(r"""[^\s"'`,;&<>(){}\[\]|\\]+""")
_QUOTED = re.compile(r"""[^\s"'`\\<>]+""")  # a part of a quoted value
# Of people's own: they may be words, but seldom letters alone.
_PASSWORD = re.compile(r"pass(?:word|wd|phrase|wort)|passw|pwd|secret", re.IGNORECASE)
_PASSWORD_VALUE = re.compile(r"(?=.*[\d!@#$%^&*?~+])[\w!@#$%^&*?~+.,;:=-]{6,}\Z")
_SHELL = re.compile(
    r"\s*(?:export |set |ENV )?[A-Z0-9_]*(?:PASS(?:WORD|WD|PHRASE)?|PWD|SECRET|TOKEN|KEY)="
    r"(\S{6,})\s*\Z"
)
_NAMED_ENTRY = re.compile(r"\s*-?\s*[\"']?(?:name|key)[\"']?\s?:\s?[\"']?[\w.-]*\Z")
_OPEN = re.compile(r"[\"'`\])]{0,3}\s?(?::=|=>|[=:,(])[\s(\\]*[rbfuRBFU]{0,2}\Z")
_ALONE = re.compile(r"""\s*-?\s*(?P<key>value\s?[:=]\s?)?(?P<quote>["'`])?""")
_TEMPLATE = re.compile(r"\$\{|\$\(|\{\{|%\(|%[sd]|\{\w*\}|<\w+>|\.\.\.|\$[A-Za-z_]\w*\Z|…")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'`<>]{0,64}:([^\s/@\"'`<>]{3,})@")
_ADDRESS_SO_FAR = re.compile(r"://[^\s:/@\"'`<>]{1,64}:(?!\d{1,5}\Z)([^\s/@\"'`<>{}]{3,})\Z")
_HEX = re.compile(r"(?=.*[0-9])(?=.*[a-f])[0-9a-f-]{24,}\Z", re.IGNORECASE)
_HEX_SO_FAR = re.compile(r"(?=.*[0-9])(?=.*[a-f])[0-9a-f-]{6,}\Z", re.IGNORECASE)
_MIXED = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z])")
_LONG_WORD = re.compile(r"(?:[a-z]{20,}|[A-Z]{20,})\Z")  # no word of a language is so long
_COMMON_PASSWORDS = re.compile(
    r"(?:my|your|the|db|test|some|user)?[-_]?(?:pass|password|passwd|pwd|pw|secret|token|user|port|xxx+|\*+)\d{0,3}",
    re.IGNORECASE,
)

_PAIRS = frozenset(
    """
    ab ac ad ag ai ak al am an ap ar as at au av ax ay ba be bi bl bo bs bu ca cc ce ch ci ck cl co
    cr ct cu da dd de di do ds du ea ec ed ee ef eg ei el em en ep eq er es et ev ew ex ey fa fe ff
    fi fl fo fr fu ga ge gg gh gi gn gr gs gu ha he hi ho ht ia ib ic id ie if ig il im in io ip ir
    is it iv ix iz je ke ki la ld le lf li ll lo ls lt lu ly ma mb me mi mm mo mp ms mu na nc nd ne
    nf ng ni nl nn no ns nt nu nv ny oa ob oc od of og oi ol om on oo op or os ot ou ov ow pa pd pe
    pi pl po pp pr ps pt pu py qu ra rc rd re rg ri rk rm rn ro rr rs rt ru rv ry sa sc se sh si sl
    so sp ss st su sy ta tc te th ti tl to tp tr ts tt tu ty ua ub uc ue ui ul um un up ur us ut va
    ve vi wa we wh wi wo wr xc xi xp xt yp ys yt ze
    """.split()
)


_SEGMENT = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class Line(NamedTuple):
    """What a line holds. open: a secret's name is at its end, whose value may be in the next."""

    spans: Spans
    open: str


NOTHING = Line((), "")


def read_line(line: str, before: str = "") -> Line:
    """before: `open` of the line before."""
    spans: list[tuple[int, int]] = []
    opened = ""
    for run in _RUN.finditer(line):
        for found in _ISSUED.finditer(run[0]):
            if any(map(str.isdigit, found[0])) or nonsense(found[0]) > 0.1:
                spans.append((run.start() + found.start(), run.start() + found.end()))
    alone = _value_alone(line) if before else None
    if alone is not None and is_random(line[slice(*alone)], sure=before == "sure"):
        spans.append(alone)
        opened = before
    if _WORDS.search(line.lower()):
        for address in _ADDRESS.finditer(line):
            if not _TEMPLATE.search(address[1]) and not _COMMON_PASSWORDS.fullmatch(address[1]):
                spans.append(address.span(1))
        named, tail = _named(line)
        spans += named
        opened = tail or opened
    if not spans and not opened:
        return NOTHING
    return Line(_joined(spans), opened)


def unfinished(line: str) -> int | None:
    """Where a secret begins that is being typed at the line's end; None if there is none.

    Of half a key less is known than of a whole one, so that less is asked of it.
    """
    for found in _ISSUED_SO_FAR.finditer(line):
        if found.end() == len(line):
            return found.start()
    if address := _ADDRESS_SO_FAR.search(line):
        return address.start(1)
    if not _WORDS.search(line.lower()):
        return None
    for value in _values(line):
        if value.end == len(line) and value.sure and _may_become_secret(value):
            return value.start
    return None


def _may_become_secret(value: _Value) -> bool:
    text = value.text
    if len(text) < (3 if value.quoted else 6) or _TEMPLATE.search(text):
        return False
    if value.password and len(text) > 3:
        return True
    strange = nonsense(text)
    mixed = any(map(str.isdigit, text)) and any(map(str.isalpha, text))
    return (mixed and (value.quoted or strange > 0.05 or bool(_HEX_SO_FAR.match(text)))) or (
        len(text) > 5 and (text.isdigit() or strange > 0.25)
    )


class _Value(NamedTuple):
    """What stands behind the name of a secret."""

    text: str
    start: int
    sure: bool
    quoted: bool
    password: bool  # by its name

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def _named(line: str) -> tuple[list[tuple[int, int]], str]:
    """The secrets behind names of secrets, and `open`."""
    spans = []
    for value in _values(line):
        if is_random(value.text, sure=value.sure) or (value.password and is_password(value.text)):
            spans.append((value.start, value.end))
    shell = _SHELL.match(line)
    if shell and not _TEMPLATE.search(shell[1]) and not _COMMON_PASSWORDS.fullmatch(shell[1]):
        spans.append(shell.span(1))
    opened = ""
    for name in _NAME.finditer(line):
        entry = not line[name.end() :].strip("\"', \r") and _NAMED_ENTRY.match(line[: name.start()])
        if entry or _OPEN.match(line, name.end()):
            opened = "sure" if name["sure"] else "unsure"
    return spans, opened


def _values(line: str) -> Iterator[_Value]:
    for name in _NAME.finditer(line):
        between = _BETWEEN.match(line, name.end())
        if between is None:
            continue
        quote = None
        start = between.end()
        for part in (_SCHEME, _QUOTE, _SCHEME):
            if found := part.match(line, start):
                start = found.end()
                quote = found if part is _QUOTE else quote
        sure = name["sure"] is not None
        if quote is None and not sure and not between["sign"].strip():
            continue
        found = (_BARE if quote is None else _QUOTED).match(line, start)
        if found is not None and quote is None and _is_code(between["sign"], found[0]):
            continue
        if found is not None and line[found.end() : found.end() + 1] != "(":
            direct = quote is not None and between["call"] is None
            password = direct and _PASSWORD.fullmatch(name[0].rpartition("_")[2]) is not None
            yield _Value(found[0], start, sure, quote is not None, password)


def _is_code(sign: str, value: str) -> bool:
    """Whether what stands without quotes behind a name is one of the values of a program."""
    if sign.strip() in (",", "("):
        return True
    return _WORDS.search(value.lower()) is not None and nonsense(value) < 0.35


def _value_alone(line: str) -> tuple[int, int] | None:
    """The value that is all that a line holds, or that stands behind the word `value`."""
    start = _ALONE.match(line)
    assert start is not None
    found = (_QUOTED if start["quote"] else _BARE).match(line, start.end())
    if found is None:
        return None
    if not start["key"] and line[found.end() :].strip("\"'`,;)]} \t\r\\"):
        return None
    return found.span()


def is_random(value: str, *, sure: bool) -> bool:
    """Whether a value behind a secret's name is a secret."""
    if len(value) < (8 if sure else 20) or _TEMPLATE.search(value):
        return False
    least = 0.25
    if sure and _LONG_WORD.match(value):
        least = 0.1
    elif not sure or (len(value) < 10 and not any(map(str.isdigit, value))):
        least = 0.35
    elif len(value) >= 12 and value.isalnum():
        least = 0.12 if _MIXED.match(value) else 0.15
    return len(set(value)) > 5 and (bool(_HEX.match(value)) or nonsense(value) >= least)


def is_password(value: str) -> bool:
    """Whether a quoted value behind a password's name is one that a person chose."""
    if _TEMPLATE.search(value) or _COMMON_PASSWORDS.fullmatch(value):
        return False
    return _PASSWORD_VALUE.match(value) is not None


def nonsense(value: str) -> float:
    """The share of the pairs of neighbours that words, names and numbers do not have."""
    strange = 0
    before: re.Match[str] | None = None
    for word in _SEGMENT.finditer(value):
        letters = word[0].lower()
        if not letters.isdigit():
            strange += sum(a + b not in _PAIRS for a, b in pairwise(letters))
        if before is not None and before.end() == word.start():
            # As in camelCase and sha256: each of the words has at least three letters.
            strange += any(len(each[0]) < 3 and each[0].isalpha() for each in (before, word))
        before = word
    return strange / max(1, len(value) - 1)


def _joined(spans: list[tuple[int, int]]) -> Spans:
    """The spans in order, without overlaps."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
