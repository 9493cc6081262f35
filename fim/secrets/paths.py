"""Names of files that hold secrets, and the rules of a `.fimlsignore` in gitignore's syntax."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

# Of the last part of a path, in lower case.
FILES = """
.env .env.* .env-* .env_* .envrc *.env
*.pem *.key *.p8 *.p12 *.pfx *.pkcs12 *.jks *.keystore *.ppk *.kdb *.kdbx *.agekey *.gpg *.pgp
id_rsa* id_dsa* id_ecdsa* id_ed25519*
*.tfvars *.tfvars.json *.tfstate *.tfstate.* .terraformrc terraform.rc
.netrc _netrc .pgpass pgpass.conf .my.cnf .mylogin.cnf .npmrc .pypirc .htpasswd .git-credentials
.dockercfg .dockerconfigjson .s3cfg .boto .databrickscfg .vault-token .vault_pass* *.ovpn
kubeconfig kubeconfig.* *.kubeconfig
credentials credentials.json credentials.toml credentials.y*ml credentials.db
client_secret*.json service[-_]account*.json serviceaccount*.json *serviceaccountkey*.json
secret.json secret.y*ml secret.toml secret.ini secrets.json secrets.y*ml secrets.toml secrets.ini
*.secret *.secrets *.secrets.json *.secrets.y*ml local.settings.json
.bash_history .zsh_history .psql_history .mysql_history .python_history .node_repl_history
""".split()
# Of any part of a path but the last, in lower case.
FOLDERS = ".aws .ssh .gnupg .azure .kube .docker .password-store gcloud .secrets .vault".split()
# "id_*" of ssh-keygen, under any name that somebody gave a key: no file of code lacks a suffix.
_SSH_KEY = re.compile(r"id_[^.]+(?:\.pub)?\Z")
_FILE = re.compile("|".join(map(translate, FILES)))
MOST_RULES = 5000  # lines of a file with rules
LONGEST_RULE = 1000  # characters
LANGUAGES = frozenset({"dotenv"})  # LSP's identifiers of languages that such files are in


@lru_cache(256)
def is_secret_path(path: str) -> bool:
    """Whether a file of this name holds secrets. The path's parts are divided by / or \\."""
    *folders, name = re.split(r"[/\\]+", path.lower().rstrip("/\\"))
    if _FILE.match(name) or _SSH_KEY.match(name):
        return True
    return any(folder in FOLDERS for folder in folders)


_STAR = None  # any number of folders
Segment = re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class _Rule:
    segments: tuple[Segment, ...]  # of a path relative to the file's folder
    negated: bool
    only_folders: bool

    def matches(self, parts: Sequence[str]) -> bool:
        """Whether the rule's pattern is the whole path. Each part is looked at but a few times,
        whatever the pattern is."""
        segments = self.segments
        if len(segments) == 2 and segments[0] is _STAR and segments[1] is not _STAR:
            return segments[1].match(parts[-1]) is not None
        at = done = 0
        star = -1  # the last one, which takes the parts before `kept`
        kept = 0
        while done < len(parts):
            segment = segments[at] if at < len(segments) else _NOTHING
            if segment is _STAR:
                star = at
                kept = done
                at += 1
            elif segment.match(parts[done]):
                at += 1
                done += 1
            elif star >= 0:
                kept += 1
                done = kept
                at = star + 1
            else:
                return False
        return all(segment is _STAR for segment in segments[at:])


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The lines of a `.fimlsignore` or a `.gitignore`.

    Those of a `.fimlsignore` add to the rules above and never take one back: a repository that
    somebody has cloned does not decide what of the user's is secret.
    """

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> IgnoreRules:
        """Lines that mean nothing are left out. Raises ValueError for more than MOST_RULES."""
        lines = re.split(r"\r\n|\r|\n", text)
        if len(lines) > MOST_RULES:
            raise ValueError(f"{len(lines):,} lines, more than {MOST_RULES:,}")
        return cls(tuple(filter(None, map(_parse, lines))))

    def ignores(self, path: str) -> bool:
        """Whether a file is ignored, by its path relative to the folder of the rules."""
        parts = path.strip("/").split("/")
        # A file in an ignored folder is ignored, whatever the rules say of the file itself.
        return any(
            self.names("/".join(parts[:size]), is_folder=size < len(parts))
            for size in range(1, len(parts) + 1)
        )

    def names(self, path: str, *, is_folder: bool) -> bool:
        """Whether the rules ignore a file or a folder by its own path."""
        ignored = False
        parts = path.split("/")
        for rule in self.rules:
            if rule.negated == ignored and (is_folder or not rule.only_folders):
                ignored ^= rule.matches(parts)
        return ignored


def _parse(line: str) -> _Rule | None:
    bare = line.rstrip(" \t")
    if bare.endswith("\\"):  # blanks at the end count only behind a backslash
        bare = line[: len(bare) + 1]
    line = bare
    negated = line.startswith("!")
    if negated:
        line = line[1:]
    only_folders = line.endswith("/")
    line = line.rstrip("/")
    if not line or line.startswith("#") or len(line) > LONGEST_RULE:
        return None
    names = line.lstrip("/").split("/")
    if "/" not in line and names != ["**"]:
        names.insert(0, "**")
    if names[-1] == "**":  # what is in a folder, not the folder
        names.append("*")
    try:
        segments = tuple(_STAR if name == "**" else _segment(name) for name in names)
    except re.error:
        return None
    return _Rule(segments, negated, only_folders)


_TOKEN = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)
_NOTHING = re.compile(r"(?!)")


def _segment(glob: str) -> re.Pattern[str]:
    """A regular expression for a glob that has no folders. What a star takes is never tried anew:
    `*a*a*a*` would else take minutes."""
    runs = [""]
    for token in _TOKEN.findall(glob):
        if token[0] == "*":
            runs.append("")
        elif token == "?":
            runs[-1] += "."
        elif token[0] == "[" and len(token) > 2:
            inner = token[1:-1].replace("\\", "\\\\")
            runs[-1] += f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]"
        else:
            runs[-1] += re.escape(token[-1])
    first, *others = runs
    pattern = first
    for run in others[:-1]:
        pattern += f"(?>.*?{run})"
    for run in others[-1:]:
        pattern += f".*{run}"
    return re.compile(pattern + r"\Z", re.DOTALL)
