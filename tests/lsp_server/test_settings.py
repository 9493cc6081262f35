"""Settings from good, bad and absurd JSON."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lsp_server.settings import (
    _RULES,
    MACHINE_SCOPE,
    LogSettings,
    RemoteSettings,
    Reporter,
    Settings,
    from_environment,
    parse,
    variable,
)
from model.engine.options import EngineOptions

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "cpu", "http://[", "http://a:99999", "http://\ud800", "//a@b"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.sampled_from([*_RULES, "fimls", "engine", "fimls.engine", "device"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@hypothesis_settings(max_examples=400, deadline=None)
@given(raw=JSON, trusted=st.booleans())
def test_any_json_gives_settings_that_are_valid(raw: object, trusted: bool) -> None:
    settings, problems = parse(raw, trusted=trusted)
    again, none = parse(as_json(settings))
    assert (again, none) == (settings, ())
    assert all(problem.isprintable() and len(problem) < 400 for problem in problems)
    if not trusted:
        assert (settings.model, settings.engine, settings.remote) == (
            Settings().model,
            Settings().engine,
            Settings().remote,
        )


@hypothesis_settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(_RULES)), value=JSON)
def test_any_value_of_any_setting_is_taken_or_named(name: str, value: object) -> None:
    settings, problems = parse({name: value})
    if problems:
        assert settings == Settings()
        assert problems[0].startswith(f"fimls.{name} ")
    assert len(problems) <= 1


def as_json(settings: Any) -> dict[str, object]:
    """The settings as a client would write them; None is left out because the client has no other
    way to say it."""
    raw: dict[str, object] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        head, *words = field.name.split("_")
        name = head + "".join(word.capitalize() for word in words)
        raw[name] = as_json(value) if dataclasses.is_dataclass(value) else value
        if value is None:
            raw[name] = "" if name == "apiKeyEnv" else None
    return raw


def test_every_field_is_a_setting_and_every_default_is_valid() -> None:
    names = set()
    for name, value in as_json(Settings()).items():
        names |= {f"{name}.{inner}" for inner in value} if isinstance(value, dict) else {name}
    assert names == set(_RULES)
    assert parse(as_json(Settings())) == (Settings(), ())


ALL = {
    "enabled": False,
    "disabledLanguages": ["markdown", "plaintext"],
    "model": "/models/starcoder2-3b",
    "format": "starcoder2",
    "layout": "spm",
    "multiline": "never",
    "maxTokens": 128,
    "contextTokens": 4096,
    "suffixTokens": 256,
    "timeBudget": 0,
    "patience": 2.5,
    "temperature": 1,
    "topP": 0.9,
    "seed": 7,
    "engine": {
        "device": "cuda:1",
        "dtype": "bfloat16",
        "quantization": "int8",
        "idleTimeout": 60,
        "threads": 4,
        "startTimeout": 30.5,
        "cacheMemory": 64,
        "cacheDisk": 0,
        "cacheWeights": False,
    },
    "remote": {
        "url": "https://example.org:8443/v1",
        "model": "m",
        "apiKeyEnv": "",
        "apiKey": "k-1",
        "format": "codellama",
        "timeout": 3,
        "caFile": "~/ca.pem",
        "verifyTls": False,
        "proxy": "http://me:secret@proxy:3128",
    },
    "log": {"level": "debug"},
}
ALL_PARSED = Settings(
    enabled=False,
    disabled_languages=("markdown", "plaintext"),
    model="/models/starcoder2-3b",
    format="starcoder2",
    layout="spm",
    multiline="never",
    max_tokens=128,
    context_tokens=4096,
    suffix_tokens=256,
    time_budget=0.0,
    patience=2.5,
    temperature=1.0,
    top_p=0.9,
    seed=7,
    engine=EngineOptions("cuda:1", "bfloat16", "int8", 60.0, 4, 30.5, 64, 0, False),
    remote=RemoteSettings(
        "https://example.org:8443/v1",
        "m",
        None,
        "k-1",
        "codellama",
        3.0,
        "~/ca.pem",
        False,
        "http://me:secret@proxy:3128",
    ),
    log=LogSettings("debug"),
)


@pytest.mark.parametrize(
    "raw",
    [
        ALL,
        {"fimls": ALL},
        {"fimls": ALL, "editor": {"fontSize": 12}, "editor.tabSize": 4},
        {f"fimls.{name}": value for name, value in ALL.items()},
    ],
    ids=["section", "nested", "among others", "dotted"],
)
def test_every_setting_in_every_shape(raw: object) -> None:
    assert parse(raw) == (ALL_PARSED, ())


@pytest.mark.parametrize(
    "raw",
    [{"engine.device": "cpu"}, {"fimls.engine.device": "cpu"}, {"fimls": {"engine.device": "cpu"}}],
)
def test_dotted_names(raw: object) -> None:
    assert parse(raw) == (Settings(engine=EngineOptions(device="cpu")), ())


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (
            {"maxTokens": 5000},
            "fimls.maxTokens is 5000, expected a whole number from 1 to 1024; 64 is used instead",
        ),
        (
            {"maxTokens": True},
            "fimls.maxTokens is true, expected a whole number from 1 to 1024; 64 is used instead",
        ),
        (
            {"maxTokens": 1.5},
            "fimls.maxTokens is 1.5, expected a whole number from 1 to 1024; 64 is used instead",
        ),
        (
            {"contextTokens": 63},
            "fimls.contextTokens is 63, expected a whole number of at least 64; null is used "
            "instead",
        ),
        (
            {"temperature": float("nan")},
            "fimls.temperature is NaN, expected a number from 0 to 2; 0.0 is used instead",
        ),
        (
            {"topP": 0},
            "fimls.topP is 0, expected a number above 0 and up to 1; 1.0 is used instead",
        ),
        ({"enabled": 1}, "fimls.enabled is 1, expected true or false; true is used instead"),
        (
            {"layout": "PSM"},
            'fimls.layout is "PSM", expected one of auto, psm, spm, anchored; "auto" is used '
            "instead",
        ),
        (
            {"engine": {"idleTimeout": float("inf")}},
            "fimls.engine.idleTimeout is Infinity, expected a number of seconds above 0; 900.0 is "
            "used instead",
        ),
        (
            {"engine.device": "tpu"},
            'fimls.engine.device is "tpu", expected auto, cpu, mps, cuda, or cuda: and a number; '
            '"auto" is used instead',
        ),
        (
            {"engine": "cpu"},
            'fimls.engine is "cpu", expected an object with settings; it is ignored',
        ),
        ([1], "fimls is [1], expected an object with settings; it is ignored"),
        ({"fimls": 1}, "fimls is 1, expected an object with settings; it is ignored"),
        (
            {"remote": {"url": "https://me:secret@example.org"}},
            'fimls.remote.url is "https://…@example.org", expected an http or https address '
            "without user name"
            " and password; null is used instead",
        ),
        (
            {"remote.apiKey": "two words"},
            "fimls.remote.apiKey is not usable, expected a key without spaces; it is ignored",
        ),
        (
            {"remote.apiKeyEnv": "sk-secret"},
            "fimls.remote.apiKeyEnv is not usable, expected the name of an environment variable; "
            "it is ignored",
        ),
        (
            {"disabledLanguages": "lua"},
            'fimls.disabledLanguages is "lua", expected a list of strings; [] is used instead',
        ),
        ({"maxToken": 5}, "fimls.maxToken is not a setting; did you mean fimls.maxTokens?"),
        (
            {"engine": {"devise": "cpu"}},
            "fimls.engine.devise is not a setting; did you mean fimls.engine.device?",
        ),
        ({"zzz": 5}, "fimls.zzz is not a setting; it is ignored"),
    ],
    ids=str,
)
def test_a_bad_value_is_named_and_the_default_used(raw: object, problem: str) -> None:
    assert parse(raw) == (Settings(), (problem,))


@pytest.mark.parametrize("raw", [None, {}, {"fimls": None}, {"engine": None}, {"maxTokens": None}])
def test_null_means_not_set(raw: object) -> None:
    base = Settings(max_tokens=9)
    assert parse(raw, base=base) == (base, ())


def test_an_empty_model_means_not_set() -> None:
    """So that the editor's default leaves the choice in the user's settings file alone."""
    base = Settings(model="chosen")
    assert parse({"model": ""}, base=base) == (base, ())


def test_what_is_not_set_or_bad_keeps_the_base() -> None:
    base = Settings(max_tokens=9, remote=RemoteSettings(url="http://localhost:1", timeout=1.0))
    settings, problems = parse({"maxTokens": 0, "remote": {"timeout": 2, "url": ""}}, base=base)
    assert settings == Settings(max_tokens=9, remote=RemoteSettings(timeout=2.0))
    assert problems == (
        "fimls.maxTokens is 0, expected a whole number from 1 to 1024; 9 is used instead",
    )


def test_a_workspace_cannot_choose_model_device_or_endpoint() -> None:
    base = Settings(model="mine", remote=RemoteSettings(api_key="base-secret"))
    settings, problems = parse(ALL, base=base, trusted=False)
    assert settings == dataclasses.replace(
        ALL_PARSED, model="mine", engine=EngineOptions(), remote=base.remote
    )
    assert {problem.split()[0].removeprefix("fimls.") for problem in problems} == MACHINE_SCOPE
    assert 'fimls.model cannot be set by a workspace; "mine" is used instead' in problems
    assert "secret" not in " ".join(problems)


def test_a_flood_of_unknown_names_gives_few_problems() -> None:
    settings, problems = parse({f"x{n}" * 1000: 0 for n in range(10_000)})
    assert settings == Settings()
    assert len(problems) == 11
    assert problems[-1] == "9990 more names under fimls are no settings"


def test_the_key_is_not_in_the_repr() -> None:
    settings, _ = parse({"remote": {"apiKey": "k-secret"}})
    assert settings.remote.api_key == "k-secret"
    assert "k-secret" not in repr(settings)


def test_a_problem_is_reported_once() -> None:
    reporter = Reporter()
    assert reporter.new(["a", "b", "a"]) == ("a", "b")
    assert reporter.new(["b", "c"]) == ("c",)
    assert reporter.new(["a", "b", "c"]) == ()


def test_the_environment() -> None:
    raw = from_environment(
        {
            "FIMLS_MODEL": "123",
            "FIMLS_DEVICE": "cpu",
            "FIMLS_DTYPE": "",
            "FIMLS_IDLE_TIMEOUT": "60",
            "FIMLS_MAX_TOKENS": "many",
            "FIMLS_ENABLED": "Off",
            "FIMLS_DISABLED_LANGUAGES": "lua, markdown",
            "FIMLS_REMOTE_URL": "http://localhost:8000/v1",
            "FIMLS_API_KEY": "none of ours",
            "PATH": "/bin",
        }
    )
    assert parse(raw) == (
        Settings(
            enabled=False,
            disabled_languages=("lua", "markdown"),
            model="123",
            engine=EngineOptions(device="cpu", idle_timeout=60.0),
            remote=RemoteSettings(url="http://localhost:8000/v1"),
        ),
        ('fimls.maxTokens is "many", expected a whole number from 1 to 1024; 64 is used instead',),
    )


def test_each_setting_has_a_variable_of_its_own() -> None:
    variables = {variable(name) for name in _RULES}
    assert len(variables) == len(_RULES)
    assert variable("log.level") == "FIMLS_LOG_LEVEL"
    assert "FIMLS_API_KEY" not in variables  # it holds a key, and no setting


def test_a_deep_value_is_no_trap() -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    _, problems = parse({"model": deep})
    assert problems[0].startswith("fimls.model is [[[[")


@pytest.mark.parametrize(
    "raw",
    [
        {"python": {"analysis": {"typeCheckingMode": "strict"}}, "rust-analyzer": {}},
        {"rust-analyzer.cargo.features": "all", "editor.fontSize": 12},
        {"yaml": {"validate": True}, "trace": "off"},
        [],
    ],
)
def test_settings_of_other_servers_are_no_matter(raw: object) -> None:
    """Clients that send all they have to each server."""
    assert parse(raw, trusted=False) == (Settings(), ())


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"maxTokns": 5}, "maxTokns"),
        ({"maxTokens": 5, "engines": {}}, "engines"),
        ({"fimls": {"engines": {"device": "cpu"}}}, "engines"),
        ({"fimls.engines.device": "cpu"}, "engines.device"),
    ],
)
def test_a_setting_of_ours_that_is_misspelt_is_named(raw: object, name: str) -> None:
    _, problems = parse(raw, trusted=False)
    assert [problem.split(" is not a setting")[0] for problem in problems] == [f"fimls.{name}"]
