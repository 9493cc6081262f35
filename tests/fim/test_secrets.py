"""What looks like a secret, and what does not."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim.secrets import IgnoreRules, holds_secret, is_secret_path, mask
from fim.secrets.masking import MASK
from tests.salt import FORMS, Salt, leaks

FAR = 10**6
CODE = '''\
import os


def total(values: list[int]) -> int:
    """The sum."""
    return sum(values)
'''


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_secret_is_written_over(form: str, line_end: str) -> None:
    for seed in range(20):
        salt = Salt(seed)
        secret = FORMS[form](salt)
        text = f"{CODE}{secret}\n{CODE}".replace("\n", line_end)
        masked = mask(text, 0, FAR)
        assert leaks(salt.keys, text)
        assert leaks(salt.keys, masked.text) == []
        assert not masked.at_cursor
        assert len(masked.text) == len(text)
        changed = [i for i, char in enumerate(text) if masked.text[i] != char]
        assert {masked.text[i] for i in changed} == {MASK}
        start = text.index(secret[:4].replace("\n", line_end), len(CODE))
        assert start <= changed[0]
        assert changed[-1] < start + len(secret.replace("\n", line_end))
        assert mask(masked.text, 0, FAR).text == masked.text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("tool --password 8PrdjSnrulRor2 --verbose", "8PrdjSnrulRor2"),
        ("<password>MSDNsoIneLIUOeys</password>", "MSDNsoIneLIUOeys"),
        ('Client(user="bob", password="CgkNddMmoEwa")', "CgkNddMmoEwa"),
        ('boto3.client("s3", "AKIACRAUEFOPWRPRPXIB")', "AKIACRAUEFOPWRPRPXIB"),
    ],
)
def test_a_secret_whose_letters_nearly_make_sense_is_written_over(text: str, secret: str) -> None:
    """Of 111,000 keys these and four like them were left."""
    assert mask(text, 0, FAR).text == text.replace(secret, MASK * len(secret))


@pytest.mark.parametrize(
    "text", ["  api_key: 230068eee25", "- name: API_TOKEN\n  value: JueypMcluP"]
)
def test_half_a_secret_that_looks_like_a_number_or_a_word_is_seen(text: str) -> None:
    """In 5 of 100,000 prompts ten characters and more of one were left."""
    masked = mask(text, len(text), FAR)
    assert masked.at_cursor or masked.text.endswith(MASK * 10)


@pytest.mark.parametrize(
    "text",
    [
        "token = self.tokens[index]",
        "aws_session_token=self.AWS_SESSION_TOKEN,",
        'password = meta.get("ftp_password", self.default_password)',
        'password = getpass.getpass("Password: ")',
        "key = sha256_hex(content)",
        "api_key=settings.OPENAI_API_KEY_2",
        'SECRET_NAME = "projects/my-app/secrets/db-password/versions/latest"',
        'password = "${DB_PASSWORD}"',
        "password: {{ vault_db_password }}",
        'url = "postgres://user:password@localhost/db"',
        'url = f"postgres://{user}:{password2}@localhost:5432/db"',
        'raise ValueError("the password is too short")',
        'token_type = "text/html;charset=utf-8"',
        "class TokenizerFast2(Tokenizer): pass",
        'key = "user:session:latest"',
        "def authenticate(self, password: str, token: Optional[int] = None) -> Session:",
        'if line.startswith("-----BEGIN RSA PRIVATE KEY-----"):\n    return parse_all(line)\n'
        '    # goes on until "-----END RSA PRIVATE KEY-----"',
        'AUTHOR = "Guido van Rossum"  # author2024@example.com',
        "passes = keyboard.press(monkey2)",
        '<input type="password" name="password" id="password2">',
        "commit 9c7b1f4e2a6d8035f1b2c3d4e5f60718293a4b5c",
        '"integrity": "sha512-AbCdEf0123456789AbCdEf0123456789AbCdEf=="',
        "AKIA and ghp_ and sk- and eyJ are how keys begin",
    ],
)
def test_ordinary_code_is_left_alone(text: str) -> None:
    assert mask(text, 0, FAR).text == text


@pytest.mark.parametrize("form", [form for form in FORMS if "block" not in form])
def test_while_a_secret_is_typed_next_to_nothing_of_it_is_seen(form: str) -> None:
    salt = Salt(7)
    text = CODE + FORMS[form](salt)
    for end in range(len(CODE), len(text) + 1):
        masked = mask(text[:end], end, FAR)
        if not masked.at_cursor:
            assert leaks(salt.keys, masked.text, least=9) == [], text[:end]


def test_the_cursor_in_a_secret_or_behind_it() -> None:
    text = f'API_KEY = "{Salt(1).word()}"\n'
    at = [offset for offset in range(len(text) + 1) if mask(text, offset, FAR).at_cursor]
    assert at == list(range(text.index('"') + 2, text.rindex('"') + 1))


def test_typing_elsewhere_does_not_change_the_mask() -> None:
    text = f'{CODE}API_KEY = "{Salt(1).word()}"\n{CODE}'
    offset = len(text)
    before = mask(text, offset, FAR).text
    for key in 'def f(token): return "abc"\n':
        text += key
        offset += 1
        after = mask(text, offset, FAR).text
        assert after == before + key
        before = after


def test_what_is_out_of_reach_is_not_read_and_blocks_are_seen_from_within() -> None:
    salt = Salt(3)
    lines = "x = 1\n" * 40_000
    secret = FORMS["a block"](salt)
    text = f"{lines}{secret}\n{lines}"
    inside = text.index("END RSA") - 100
    assert leaks(salt.keys, mask(text, inside, 200).text) == []
    assert mask(text, 0, 200).text is text
    assert leaks(salt.keys, mask(text, len(text) - 1, 200).text)


@given(st.text(st.characters() | st.sampled_from('abc123=":\n\r\t -'), max_size=200), st.data())
def test_a_mask_keeps_every_line(text: str, data: st.DataObject) -> None:
    salt = Salt(data.draw(st.integers(0, 99)))
    secret = FORMS[data.draw(st.sampled_from(sorted(FORMS)))](salt)
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + secret + text[at:]
    masked = mask(text, data.draw(st.integers(0, len(text))), FAR).text
    assert len(masked) == len(text)
    assert [i for i, c in enumerate(text) if c.isspace()] == [
        i for i, c in enumerate(masked) if c.isspace()
    ]


def test_a_secret_in_a_suggestion() -> None:
    salt = Salt(5)
    value = salt.word()
    assert holds_secret("API_KEY = ", f'"{value}"', [])
    assert holds_secret("", f'a = 1\npassword = "{value}"', [])
    assert holds_secret("print(", f'"{value}")', [value])
    assert holds_secret("other = ", f'"{MASK * 20}"', [value])
    assert not holds_secret("print(", f'"{value}")', [])
    assert not holds_secret(f'API_KEY = "{MASK * 32}"; x = ', "[1, 2, 3]", [value])


@pytest.mark.parametrize("length", range(360, 400))
def test_a_name_and_its_value_in_a_long_line_are_read_together(length: int) -> None:
    """Such a line is read in pieces, one of which ended between the name and its sign."""
    before = "red 1 " * 100
    text = f'API_KEY = "{Salt(3).word()}"'
    assert holds_secret(before[:length], text, ())
    assert Salt(3).word() not in mask(before[:length] + text + before, 0, FAR).text


def test_the_cost_of_a_key_in_a_long_file_is_that_of_its_reach() -> None:
    generator = random.Random(1)
    lines = [f"    name_{generator.randrange(10**6)} = call({i})" for i in range(20_000)]
    text = "\n".join(lines)
    spent = []
    for key in range(20):
        at = len(text) // 2 + key
        text = text[:at] + "a" + text[at:]
        started = time.process_time()
        mask(text, at + 1, 16_000)
        spent.append(time.process_time() - started)
    assert sorted(spent)[10] < 0.02  # some 0.6 ms where nothing else runs


@pytest.mark.parametrize(
    "path",
    """.env .env.local src/.env.production .envrc prod.env server.pem tls/tls.key Server.PEM id_rsa
    id_ed25519.pub id_work C:\\Users\\me\\.aws\\credentials /home/me/.aws/config .ssh/config .netrc
    _netrc infra/prod.tfvars terraform.tfstate.backup kubeconfig .kube/config .npmrc .pypirc
    secrets.yaml credentials.json service-account-prod.json .docker/config.json .pgpass vault.kdbx
    .git-credentials""".split(),
)
def test_names_of_secret_files(path: str) -> None:
    assert is_secret_path(path)


@pytest.mark.parametrize(
    "path",
    """src/main.py environment.py env.py id_generator.py secrets.py keys.py token.go aws/client.ts
    README.md pem.rs .envs/project/a.py credentials.py kube/config.go ssh.c key docker/config.json
    authors.json id.txt my.env.py""".split(),
)
def test_names_of_other_files(path: str) -> None:
    assert not is_secret_path(path)


@pytest.mark.parametrize(
    ("rules", "ignored", "others"),
    [
        ("secret.py", ["secret.py", "a/b/secret.py"], ["secret.pyc", "a/secrets.py"]),
        ("/top.py", ["top.py"], ["a/top.py"]),
        ("build/", ["build/a.py", "x/build/b/c.py"], ["build", "builds/a.py"]),
        ("docs/*.txt", ["docs/a.txt"], ["docs/b/a.txt", "x/docs/a.txt"]),
        ("**/gen/*.go", ["gen/a.go", "a/b/gen/c.go"], ["a/gen/b/c.go"]),
        ("private/**", ["private/a", "private/b/c"], ["private", "x/private/a"]),
        ("a/**/z.c", ["a/z.c", "a/b/c/z.c"], ["z.c", "b/a/z.c"]),
        ("*.cfg\n!keep.cfg", ["a.cfg", "x/b.cfg"], ["keep.cfg", "x/keep.cfg"]),
        ("vault/\n!vault/open.py", ["vault/open.py"], []),
        ("file[0-9].c\nfile[!0-9].h", ["file1.c", "filea.h"], ["filea.c", "file1.h"]),
        ("# note\n\n\\#odd\n\\!odd", ["#odd", "!odd"], ["odd", "# note"]),
        ("a?c.py   ", ["abc.py"], ["ac.py", "a/c.py"]),
        ("bad[\r\nworse[z-a]\rgood.py", ["good.py", "bad["], ["worse"]),
        ("ümlaut*.py", ["ümlaut1.py"], ["umlaut1.py"]),
        ("*a*b*ab", ["aab.ab", "x/abab"], ["ab", "aabb"]),
        # Each of these took a regular expression that goes back minutes, or for ever.
        ("*a" * 30 + "*b", ["a" * 200 + "b"], ["a" * 200]),
        ("**/a/" * 12 + "b", ["a/" * 40 + "b"], ["/".join("a" * 60)]),
        ("a" + " " * 5000 + "b\\ ", [], ["a"]),
    ],
)
def test_an_ignore_file(rules: str, ignored: list[str], others: list[str]) -> None:
    parsed = IgnoreRules.parse(rules)
    assert [path for path in ignored if not parsed.ignores(path)] == []
    assert [path for path in others if parsed.ignores(path)] == []


def test_more_rules_than_anybody_writes_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 5,000"):
        IgnoreRules.parse("a\n" * 6000)


def test_parts_of_a_secret_that_is_edited_stay_written_over() -> None:
    salt = Salt(9)
    for form in ("a string", "Amazon", "a block", "a block with escapes", "an address"):
        text = FORMS[form](salt)
        known = mask(text, 0, FAR).values
        for at in range(len(text)):
            for broken in (
                f"{text[:at]}\n{text[at:]}",
                text[:at],
                text[at:],
                text[:at] + text[at + 9 :],
            ):
                masked = mask(broken, 0, FAR, known)
                assert leaks(salt.keys, masked.text, least=9) == [], broken
                assert len(masked.text) == len(broken)
    assert mask("x = 1", 0, FAR, known).values == frozenset()  # nothing of them is left
