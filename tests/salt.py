"""Secrets that nobody uses, made anew for each test: keys as their issuers write them, and texts
that hold them as people do."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable, Mapping

LETTERS = string.ascii_letters + string.digits


class Salt:
    """Draws keys. keys: all that were drawn, as pieces by which a leak is recognized."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.keys: list[str] = []

    def drawn(self, alphabet: str, length: int) -> str:
        key = "".join(self._random.choices(alphabet, k=length))
        self.keys.append(key)
        return key

    def word(self, length: int = 32) -> str:
        return self.drawn(LETTERS, length)

    def hex(self, length: int = 40) -> str:
        return self.drawn("0123456789abcdef", length)

    def base64(self, size: int = 30) -> str:
        key = base64.b64encode(self._random.randbytes(size)).decode()
        self.keys.append(key)
        return key

    def upper(self, length: int = 16) -> str:
        return self.drawn(string.ascii_uppercase + "234567", length)

    def block(self, end: str = "\n", kind: str = "RSA ") -> str:
        lines = [self.base64(48) for _ in range(4)] + [self.base64(13)]
        marks = [f"-----{word} {kind}PRIVATE KEY-----" for word in ("BEGIN", "END")]
        return end.join((marks[0], *lines, marks[1]))


# How people write secrets into source; each is one or more whole lines.
FORMS: Mapping[str, Callable[[Salt], str]] = {
    "a string": lambda salt: f'API_KEY = "{salt.word()}"',
    "an attribute": lambda salt: f"self.client_secret: str = '{salt.word(24)}'",
    "an argument": lambda salt: f'client = Client(user="bob", password="{salt.word(12)}")',
    "a default": lambda salt: f'key = os.getenv("SECRET_KEY", "{salt.hex(50)}")',
    "or a default": lambda salt: f'const token = process.env.TOKEN || "{salt.word()}";',
    "a type": lambda salt: f"const apiKey: string = `{salt.word()}`;",
    "a call": lambda salt: f'encryption_key = bytes.fromhex("{salt.hex(64)}")',
    "a header": lambda salt: f'headers["Authorization"] = "Bearer {salt.word(40)}"',
    "a command": lambda salt: f"curl -H 'Authorization: Bearer {salt.hex()}' https://a.example",
    "an option": lambda salt: f"tool --password {salt.word(14)} --verbose",
    "YAML": lambda salt: f"  api_key: {salt.hex(32)}",
    "entries": lambda salt: f"- name: API_TOKEN\n  value: {salt.word()}",
    "JSON": lambda salt: f'  "secret": "{salt.base64()}",',
    "XML": lambda salt: f"<password>{salt.word(16)}</password>",
    "an XML attribute": lambda salt: f'<add key="ApiKey" value="{salt.word()}"/>',
    "a rocket": lambda salt: f'"password" => "{salt.word(16)}",',
    "Go": lambda salt: f'dbPassword := "{salt.word(16)}"',
    "a shell": lambda salt: f"export AWS_SECRET_ACCESS_KEY={salt.base64()}",
    "the next line": lambda salt: f'api_token = (\n    "{salt.word()}"\n)',
    "an address": lambda salt: f'url = "postgres://bob:{salt.word(12)}@db.example/x"',
    "a connection": lambda salt: f'c = "AccountName=a;AccountKey={salt.base64(64)};Suffix=b"',
    "Amazon": lambda salt: f'boto3.client("s3", "AKIA{salt.upper()}")',
    "GitHub": lambda salt: f'login("ghp_{salt.word(36)}")',
    "GitLab": lambda salt: f"git clone https://glpat-{salt.word(20)}@git.example/a.git",
    "Slack": lambda salt: f'post("xoxb-123456789012-{salt.word(24)}")',
    "a hook": lambda salt: f"https://hooks.slack.com/services/T0AB12CD3/B0AB12CD3/{salt.word(24)}",
    "Stripe": lambda salt: f'stripe.init("sk_live_{salt.word(24)}")',
    "Google": lambda salt: f'maps("AIza{salt.word(35)}")',
    "OpenAI": lambda salt: f'ask("sk-proj-{salt.word(48)}")',
    "a web token": lambda salt: (
        f'x = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{salt.word(20)}.{salt.word(43)}"'
    ),
    "letters alone": lambda salt: f'app_password = "{salt.drawn(string.ascii_lowercase, 24)}"',
    "a password": lambda salt: f'password = "{salt.drawn("bluefish23", 10)}!"',
    "twice": lambda salt: f'secret = "{salt.word()}"\nlog(1)  # {salt.keys[-1]}',
    "a block": lambda salt: salt.block(),
    "a block in a string": lambda salt: f'KEY = """{salt.block(kind="EC ")}"""',
    "a block with escapes": lambda salt: f'  "private_key": "{salt.block(chr(92) + "n", "")}",',
    "a block in pieces": lambda salt: (
        f'KEY = (\n  "{salt.block(chr(92) + "n" + chr(34) + chr(10) + "  " + chr(34))}")'
    ),
}


def leaks(keys: list[str], text: str, least: int = 10) -> list[str]:
    """The keys of which the text holds so many characters in a row; of shorter keys, all."""
    found = []
    for key in keys:
        size = min(least, len(key))
        pieces = {key[start : start + size] for start in range(len(key) - size + 1)}
        if size > 5 and any(piece in text for piece in pieces):
            found.append(key)
    return found
