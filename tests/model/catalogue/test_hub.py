"""Pulling from a hub on loopback: resumed, verified, in the hub's own cache; each fault explained
and nothing good lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.catalogue import hub as hub_module
from model.catalogue import transfer
from model.catalogue.download import LicenceNotAccepted, Stopped, pull, remove
from model.catalogue.hub import HubUnreachable
from model.catalogue.installed import find_all, locate
from model.catalogue.places import hub_cache, models_folder
from model.catalogue.records import find_record, records
from model.catalogue.transfer import Progress
from model.errors import ModelError
from tests.model.catalogue.hub_server import COMMIT, Hub, checksum, serving

LARGE = b"GGUF" + random.Random(0).randbytes(900_000)
OTHER = b"GGUF" + random.Random(1).randbytes(5_000)
NAME = "org/repo:m-Q4_K_M.gguf"
FILE = "m-Q4_K_M.gguf"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one GGUF file."""
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_module, "PAUSES_S", (0.01, 0.01))
    with serving(Hub({FILE: LARGE, "README.md": b"# m"})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def partials() -> list[Path]:
    return sorted(hub_cache().rglob("*.incomplete"))


def test_a_file_lands_in_the_hubs_own_cache(hub: Hub) -> None:
    stages: list[Progress] = []
    hub.slow_s = 0.0005
    path = pull(NAME, progress=stages.append)
    assert path.read_bytes() == LARGE and path.name == FILE
    folder = hub_cache() / "models--org--repo"
    assert path == folder / "snapshots" / COMMIT / FILE
    assert path.resolve() == (folder / "blobs" / checksum(LARGE)).resolve()
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert {p.stage for p in stages} >= {"fetching"} and partials() == []
    assert all(p.done <= len(LARGE) == p.total for p in stages if p.stage == "fetching")
    assert not hub.asked("GET", "README.md")
    (installed,) = find_all()
    assert (installed.name, installed.path, installed.bytes) == (NAME, path, len(LARGE))


def test_other_programs_find_it_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_hub_download

    path = pull(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = hf_hub_download("org/repo", FILE, cache_dir=hub_cache())
    assert Path(found) == path


def test_what_is_here_takes_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull(NAME)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pull(NAME) == path == pull(NAME, offline=True) == locate(NAME)
    assert pull("ORG/repo:q4_k_m", offline=True) == path
    assert len(hub.requests) == asked
    with pytest.raises(ModelError, match="--offline fetches nothing"):
        pull("org/another", offline=True)
    with pytest.raises(HubUnreachable, match=r"cannot be reached.*HTTPS_PROXY.*HF_ENDPOINT"):
        pull("org/another")


def test_a_damaged_file_of_the_library_is_fetched_anew(hub: Hub) -> None:
    path = pull(NAME)
    shutil.rmtree(models_folder())
    path.resolve().write_bytes(LARGE[:-1] + b"?")
    path.unlink()
    assert pull(NAME).read_bytes() == LARGE


def test_what_the_library_has_fetched_is_not_fetched_again(hub: Hub) -> None:
    path = pull(NAME)
    shutil.rmtree(models_folder())
    asked = len(hub.asked("GET", FILE))
    assert pull(NAME) == path and len(hub.asked("GET", FILE)) == asked


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_broken_connection_is_gone_on_with(hub: Hub, ignores_ranges: bool) -> None:
    hub.ignores_ranges = ignores_ranges
    hub.faults = [("GET", FILE, ["cut", 500_000]), ("GET", FILE, ["cut", 100_000])]
    assert pull(NAME).read_bytes() == LARGE
    ranges = [headers.get("range") for headers in hub.asked("GET", FILE)]
    assert len(ranges) == 3 and ranges[0] is None
    begun = [int(r.removeprefix("bytes=").removesuffix("-")) for r in ranges[1:] if r]
    assert 0 < begun[0] <= 500_000 and len(begun) == 2


def test_a_hub_that_always_breaks_off_is_given_up(hub: Hub) -> None:
    hub.faults = [("GET", FILE, ["cut", 300_000]), ("GET", FILE, ["cut", 0], "always")]
    with pytest.raises(HubUnreachable, match=r"broke off .* of 900 kB.*go on from there"):
        pull(NAME)
    (partial,) = partials()
    kept = partial.stat().st_size
    assert kept > 0 and LARGE.startswith(partial.read_bytes())
    hub.faults = []
    assert pull(NAME).read_bytes() == LARGE
    assert hub.asked("GET", FILE)[-1]["range"] == f"bytes={kept}-"


def test_wrong_bytes_are_fetched_again(hub: Hub) -> None:
    hub.faults = [("GET", FILE, LARGE[:-1] + b"?"), ("GET", FILE, LARGE + b"more")]
    assert pull(NAME).read_bytes() == LARGE


@pytest.mark.parametrize("wrong", [LARGE[:-1] + b"?", b"?" + LARGE])
def test_wrong_bytes_twice_are_refused(hub: Hub, wrong: bytes) -> None:
    hub.faults = [("GET", FILE, wrong, "always")]
    with pytest.raises(ModelError, match=r"other bytes .* twice; they were thrown away"):
        pull(NAME)
    assert locate(NAME) is None and partials() == [] and list(records()) == []


def test_an_altered_partial_file_is_not_believed(hub: Hub) -> None:
    hub.faults = [("GET", FILE, ["cut", 300_000]), ("GET", FILE, ["cut", 0], "always")]
    with pytest.raises(HubUnreachable):
        pull(NAME)
    hub.faults = []
    (partial,) = partials()
    partial.write_bytes(b"\0" * partial.stat().st_size)
    assert pull(NAME).read_bytes() == LARGE


def test_a_checksum_that_is_another_than_the_lists_is_refused(hub: Hub) -> None:
    hub.faults = [("HEAD", FILE, '"' + "a" * 64 + '"', "always")]
    with pytest.raises(ModelError, match=r"checksums differ. Nothing was fetched"):
        pull(NAME)
    hub.faults = [("HEAD", FILE, '"../../x"', "always")]
    with pytest.raises(ModelError, match=r"checksums differ. Nothing was fetched"):
        pull(NAME)
    assert not hub.asked("GET", FILE)


@pytest.mark.parametrize("content", [LARGE[:-1] + b"?", LARGE[:1000], b""])
def test_an_altered_file_is_fetched_anew(hub: Hub, content: bytes) -> None:
    path = pull(NAME)
    path.resolve().write_bytes(content)
    with pytest.raises(ModelError, match=r"was altered. Pull .* without --offline"):
        pull(NAME, offline=True)
    assert pull(NAME).read_bytes() == LARGE


REFUSALS: list[tuple[Any, str]] = [
    (401, "no org/repo for everybody.*HF_TOKEN"),
    ((401, {"X-Error-Code": "RepoNotFound"}), "no org/repo for everybody"),
    ((401, {"X-Error-Code": "GatedRepo"}), "Accept its terms at http.*org/repo, then set HF_TOKEN"),
    ((403, {"X-Error-Code": "GatedRepo"}), "Accept its terms"),
    (403, "Accept its terms"),
    (404, "no model org/repo at http.*Check the name"),
    ((404, {"X-Error-Code": "RevisionNotFound"}), "lacks the file or the revision"),
    (429, "slow down. Try again in some minutes"),
    ((429, {"Retry-After": "3600"}), "slow down"),
    (500, "in trouble .HTTP 500.. Try again later"),
    (503, "in trouble"),
    (418, "answers HTTP 418"),
    (b"<html>", "something else than a hub's list"),
    (b"[]", "something else than a hub's list"),
    (b"{}", "something else than a hub's list|names no commit"),
]


@pytest.mark.parametrize(("answer", "message"), REFUSALS)
def test_each_refusal_is_explained(hub: Hub, answer: Any, message: str) -> None:
    hub.faults = [("list", "/main", answer, "always")]
    with pytest.raises(ModelError, match=message):
        pull(NAME)
    hub.faults = []
    assert pull(NAME).read_bytes() == LARGE


@pytest.mark.parametrize("status", [429, 500, 502])
@pytest.mark.parametrize("kind", ["list", "HEAD", "GET"])
def test_a_busy_hub_is_asked_again(hub: Hub, kind: str, status: int) -> None:
    ending = "/main" if kind == "list" else FILE
    hub.faults = [(kind, ending, status), (kind, ending, status)]
    assert pull(NAME).read_bytes() == LARGE


def test_a_refused_token_is_told_from_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.faults = [("list", "/main", 401, "always")]
    with pytest.raises(ModelError, match="refuses your token"):
        pull(NAME)


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(NAME)
    hosts: dict[bool, set[str]] = {}
    for _, path, headers in hub.requests:
        hosts.setdefault(path.startswith("/storage"), set()).add(headers.get("authorization", ""))
    assert hosts == {False: {"Bearer hf_secret"}, True: {""}}


def test_a_repository_with_several_files_asks_for_one(hub: Hub) -> None:
    hub.files |= {"m-Q8_0.gguf": OTHER, "s-00001-of-00002.gguf": OTHER, "mmproj-m.gguf": OTHER}
    hub.files["s-00002-of-00002.gguf"] = LARGE
    with pytest.raises(ModelError) as told:
        pull("org/repo")
    assert str(told.value) == (
        "org/repo has several models. Name one as org/repo:FILE, of m-Q8_0.gguf (5 kB), "
        f"{FILE} (900 kB), s.gguf (905 kB)."
    )
    with pytest.raises(ModelError, match="has no one file 'q5'"):
        pull("org/repo:q5")
    path = pull("org/repo:q8_0")
    assert path.read_bytes() == OTHER and locate("org/repo:q8_0") == path
    split = pull("org/repo:s.gguf")
    assert split.name == "s-00001-of-00002.gguf"
    assert split.with_name("s-00002-of-00002.gguf").read_bytes() == LARGE


def test_a_folder_takes_only_what_a_model_needs(hub: Hub) -> None:
    hub.files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}" + b" " * 2000,
        "model.safetensors": LARGE,
        "consolidated.safetensors": OTHER,
        "pytorch_model.bin": OTHER,
        "modeling_x.py": b"x",
        "../escape.safetensors": OTHER,
    }
    folder = pull("org/repo")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert (folder / "config.json").read_bytes() == b"{}"
    assert locate("org/repo") == folder
    (record,) = records()
    assert {len(file.checksum) for file in record.files} == {40, 64}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "tokenizer.json": b"{}", "a.bin": OTHER}, "only pickled weights"),
        ({"config.json": b"{}", "model.safetensors": OTHER}, "has no tokenizer.json"),
        ({"README.md": b"x"}, "neither GGUF files nor safetensors"),
        ({}, "neither GGUF files nor safetensors"),
    ],
)
def test_a_repository_without_a_model_is_refused(
    hub: Hub, files: dict[str, bytes], message: str
) -> None:
    hub.files = files
    with pytest.raises(ModelError, match=message):
        pull("org/repo")
    assert hub.asked("GET", ".bin") == []


@pytest.mark.parametrize("name", ["x", "org/repo/more", "org/", "../x", "a b/c", "", "org/re po"])
def test_a_name_that_is_none_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(ModelError, match=r"no model .* in the catalogue|is no repository's name"):
        pull(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("licence", "name", "shown"),
    [
        ("other", "Some Licence 1.0", "Some Licence 1.0"),
        ("gemma", "", "gemma"),
        ("", "", "unknown"),
    ],
)
def test_a_licence_with_conditions_is_asked_about(
    hub: Hub, licence: str, name: str, shown: str
) -> None:
    hub.licence, hub.licence_name = licence, name
    with pytest.raises(LicenceNotAccepted, match=rf"licence {shown} \(http.*--accept-licence"):
        pull(NAME)
    with pytest.raises(LicenceNotAccepted):
        pull(NAME, accepted="another")
    assert not hub.asked("GET", FILE)
    assert pull(NAME, accepted=shown.upper()).exists()


def test_an_entry_with_conditions_is_asked_about_before_any_network(hub: Hub) -> None:
    with pytest.raises(LicenceNotAccepted, match="OpenRAIL-M"):
        pull("starcoder2-3b")
    assert hub.requests == []


def test_the_catalogues_checksum_counts_too(hub: Hub) -> None:
    """The hub offers another file under the entry's name; there it is refused, not fetched from
    packages."""
    hub.repository = "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
    hub.files = {"qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": LARGE}
    with pytest.raises(ModelError, match=r"checksums differ. Nothing was fetched"):
        pull("qwen2.5-coder-0.5b")
    hub.files = {"renamed.gguf": LARGE}
    with pytest.raises(ModelError, match=r"no longer has qwen2.*renamed.gguf \(900 kB\)"):
        pull("qwen2.5-coder-0.5b")


def test_stopping_takes_less_than_a_second_and_keeps_what_is_there(hub: Hub) -> None:
    hub.faults = [("GET", FILE, ["stall", 400_000])]
    begun = threading.Event()
    asked_at: list[float] = []

    def should_stop() -> bool:
        begun.wait(10)
        asked_at.append(time.monotonic())
        return True

    started = threading.Thread(target=_wait_for_partial, args=(begun,))
    started.start()
    with pytest.raises(Stopped, match="kept; run it again"):
        pull(NAME, should_stop=should_stop)
    assert time.monotonic() - asked_at[0] < 1.0
    started.join()
    hub.released.set()
    assert pull(NAME).read_bytes() == LARGE
    assert hub.asked("GET", FILE)[-1]["range"].startswith("bytes=")


def _wait_for_partial(begun: threading.Event) -> None:
    while not any(path.stat().st_size for path in partials()):
        time.sleep(0.01)
    begun.set()


def test_a_callback_that_raises_stops_the_pull(hub: Hub) -> None:
    hub.slow_s = 0.01

    def interrupted(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(NAME, progress=interrupted)
    hub.slow_s = 0.0
    assert pull(NAME).read_bytes() == LARGE


def test_of_two_pulls_at_once_one_waits(hub: Hub) -> None:
    hub.slow_s = 0.001
    stages: list[set[str]] = [set(), set()]
    paths: list[Path] = []

    def one(seen: set[str]) -> None:
        paths.append(pull(NAME, progress=lambda progress: seen.add(progress.stage)))

    threads = [threading.Thread(target=one, args=(seen,)) for seen in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(hub.asked("GET", FILE)) == 1
    assert sum("waiting" in seen for seen in stages) == 1


def test_a_disk_that_is_full_is_told_beforehand(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=transfer.SPARE + 500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match=r"900 kB have to be fetched. Make room"):
        pull(NAME)
    assert not hub.asked("GET", FILE)


def test_a_disk_that_is_full_at_half_keeps_what_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Callable[..., Any] = Path.open

    class Full:
        """A file on a disk that is full after some bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            if self.file.tell() + len(content) > 600_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(content)

    def open_limited(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = opened(path, mode, *rest, **named)
        return Full(file) if path.suffix == ".incomplete" and mode in ("ab", "wb") else file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_limited)
        with pytest.raises(ModelError, match=r"disk of .* is full. What was fetched is kept"):
            pull(NAME)
    (partial,) = partials()
    assert 0 < (kept := partial.stat().st_size) <= 600_000
    assert pull(NAME).read_bytes() == LARGE
    assert hub.asked("GET", FILE)[-1]["range"] == f"bytes={kept}-"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_named(hub: Hub) -> None:
    hub_cache().mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot be written"):
        pull(NAME)


def test_a_cache_that_is_a_file_is_named(hub: Hub) -> None:
    hub_cache().write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*HF_HOME"):
        pull(NAME)


def test_removing_follows_the_caches_rules(hub: Hub) -> None:
    hub.files["m-Q8_0.gguf"] = OTHER
    first = pull(NAME)
    second = pull("org/repo:m-Q8_0.gguf")
    record = find_record(NAME.upper())
    assert record is not None and remove(record) == 0  # the other one uses the revision
    assert first.exists() and second.exists() and locate(NAME) == first  # as the library's
    record = find_record("org/repo:m-Q8_0.gguf")
    assert record is not None and remove(record) == len(OTHER)
    assert not second.exists() and find_all() == [] and list(records()) == []
