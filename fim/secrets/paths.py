"""Names of files that hold secrets, and the rules of a `.fimlsignore` in gitignore's syntax."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
LANGUAGES = frozenset({"dotenv"})  # LSP's identifiers of languages that such files are in


@lru_cache(256)
def is_secret_path(path: str) -> bool:
    """Whether a file of this name holds secrets. The path's parts are divided by / or \\."""
    *folders, name = re.split(r"[/\\]+", path.lower().rstrip("/\\"))
    if _FILE.match(name) or _SSH_KEY.match(name):
        return True
    return any(folder in FOLDERS for folder in folders)


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]  # of a path relative to the file's folder
    negated: bool
    only_folders: bool


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The lines of a `.fimlsignore`: gitignore's syntax.

    They add to the rules above and never take one back: a repository that somebody has cloned does
    not decide what of the user's is secret.
    """

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> IgnoreRules:
        """Lines that mean nothing are left out."""
        return cls(tuple(filter(None, map(_parse, re.split(r"\r\n|\r|\n", text)))))

    def ignores(self, path: str) -> bool:
        """Whether a file is ignored, by its path relative to the folder of the `.fimlsignore`."""
        parts = path.strip("/").split("/")
        # A file in an ignored folder is ignored, whatever the rules say of the file itself.
        return any(
            self._last_word("/".join(parts[:size]), is_folder=size < len(parts))
            for size in range(1, len(parts) + 1)
        )

    def _last_word(self, path: str, *, is_folder: bool) -> bool:
        ignored = False
        for rule in self.rules:
            if rule.negated == ignored and (is_folder or not rule.only_folders):
                ignored ^= rule.pattern.match(path) is not None
        return ignored


def _parse(line: str) -> _Rule | None:
    # Blanks at the end count only behind a backslash.
    line = re.sub(r"(?<!\\)[ \t]+\Z", "", line)
    negated = line.startswith("!")
    if negated:
        line = line[1:]
    only_folders = line.endswith("/")
    line = line.rstrip("/")
    if not line or line.startswith("#"):
        return None
    anchored = "/" in line
    try:
        pattern = "".join(_translated(line.lstrip("/")))
        return _Rule(
            re.compile(("" if anchored else "(?:.*/)?") + pattern + r"\Z", re.DOTALL),
            negated,
            only_folders,
        )
    except re.error:
        return None


_TOKEN = re.compile(r"\*\*/|/\*\*\Z|\*+|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)


def _translated(glob: str) -> Iterable[str]:
    """The parts of a regular expression for a glob in which * stops at /."""
    for token in _TOKEN.findall(glob):
        if token == "**/":
            yield "(?:.*/)?"
        elif token == "/**":
            yield "/.+"
        elif token[0] == "*":
            yield "[^/]*"
        elif token == "?":
            yield "[^/]"
        elif token[0] == "[" and len(token) > 2:
            inner = token[1:-1].replace("\\", "\\\\")
            yield f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]"
        else:
            yield re.escape(token[-1])
