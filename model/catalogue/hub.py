"""One repository of the Hugging Face hub: what is in it, and its files in the hub's own cache.

huggingface_hub asks for lists and checksums, knows tokens, proxies and HF_ENDPOINT, and links the
files in its cache. The bytes of a large file are fetched here, because the library throws away what
it has when it is interrupted: `<checksum>.incomplete` beside the cache's blobs is gone on with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from model.catalogue.places import hub_cache
from model.catalogue.transfer import (
    GIT_SHA1,
    SHA256,
    Job,
    Progress,
    explain_disk,
    has_checksum,
    locked,
    size,
)
from model.errors import ModelError

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported

TIMEOUT_S = 10.0
PAUSES_S = (1.0, 3.0)  # before the second and the third try
LONGEST_WAIT_S = 60.0  # that a hub may ask for
BREAKS = 5  # in a row without a byte, before it is given up
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubUnreachable(ModelError):
    """No hub answers."""


@dataclass(frozen=True, slots=True)
class HubFile:
    name: str
    bytes: int
    sha256: str  # '' of a small file, which git keeps


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    repository: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def listing(repository: str, revision: str, job: Job) -> Listing:
    """Raises ModelError, HubUnreachable where no hub answers, Stopped."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        api = HfApi(endpoint=endpoint())
        return api.model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)

    info = _asked(ask, repository, job)
    files = []
    for sibling in info.siblings or ():
        path = PurePosixPath(sibling.rfilename)
        if path.is_absolute() or ".." in path.parts or type(sibling.size) is not int:
            continue
        files.append(HubFile(str(path), sibling.size, sibling.lfs.sha256 if sibling.lfs else ""))
    if not COMMIT.fullmatch(info.sha or ""):
        raise _no_hub("names no commit")
    card = info.card_data
    licence = ""
    if card is not None:
        licence = card.get("license_name") or card.get("license") or ""
    return Listing(repository, info.sha, str(licence), tuple(files))


def fetch(listed: Listing, file: HubFile, job: Job, sha256: str = "") -> tuple[Path, str]:
    """A file in the hub's cache, fetched if it is not there, and its checksum.

    sha256: what the catalogue expects besides. Raises ModelError, HubUnreachable, Stopped.
    """
    from huggingface_hub import hf_hub_download

    repository = listed.repository
    _, checksum = _source(listed, file, job)
    expected = {known for known in (sha256, file.sha256) if known}
    if not (SHA256.fullmatch(checksum) or GIT_SHA1.fullmatch(checksum)) or expected - {checksum}:
        raise ModelError(
            f"{endpoint()} offers another {file.name} of {repository} than the one that is known: "
            "the checksums differ. Nothing was fetched."
        )
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / checksum
    with explain_disk(blob):
        lock = hub_cache() / ".locks" / folder.name / f"{checksum}.lock"  # the library's own
        with locked(lock, job):
            if blob.exists() and not has_checksum(blob, checksum, job):
                blob.unlink()
            if not blob.exists():
                blob.parent.mkdir(parents=True, exist_ok=True)
                _fetch_blob(listed, file, blob, job)
        linked = _asked(
            lambda: hf_hub_download(
                repository,
                file.name,
                revision=listed.commit,
                cache_dir=hub_cache(),
                endpoint=endpoint(),
            ),
            repository,
            job,
        )
    return Path(linked), checksum


def _source(listed: Listing, file: HubFile, job: Job) -> tuple[str, str]:
    """Where a file's bytes are now, and its checksum: SHA-256, or git's SHA-1 of a small file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(listed.repository, file.name, revision=listed.commit, endpoint=endpoint())
    found = _asked(
        lambda: get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint()),
        listed.repository,
        job,
    )
    return found.location, str(found.etag)


def _fetch_blob(listed: Listing, file: HubFile, blob: Path, job: Job) -> None:
    """Wrong bytes are fetched a second time, as a whole, and then refused."""
    partial = blob.with_name(blob.name + ".incomplete")
    for _ in range(2):
        _fetch_bytes(listed, file, partial, job)
        if has_checksum(partial, blob.name, job):
            partial.replace(blob)
            return
        partial.unlink()
    raise ModelError(
        f"{endpoint()} sends other bytes of {file.name} than its checksum says, twice; they were "
        "thrown away. Look for a proxy that alters downloads, or try again later."
    )


def _fetch_bytes(listed: Listing, file: HubFile, partial: Path, job: Job) -> None:
    """Goes on with what is there, also after breaks of the connection."""
    http_error = _http_error()
    breaks = 0
    while (start := _length(partial)) != file.bytes or not partial.exists():
        try:
            _stream(listed, file, partial, start, job)
        except http_error as error:
            if _status(error) not in (None, 416, 429, 500, 502, 503, 504):
                raise _explained(error, listed.repository) from None
            if _status(error) == 416 or _length(partial) > file.bytes:
                partial.unlink(missing_ok=True)
        breaks = breaks + 1 if _length(partial) <= start else 0
        if breaks > BREAKS:
            raise HubUnreachable(
                f"{endpoint()} broke off {file.name} at {size(_length(partial))} of "
                f"{size(file.bytes)}. What was fetched is kept; run it again to go on from there."
            )
        if _length(partial) != file.bytes:
            job.pause(PAUSES_S[0])


def _stream(listed: Listing, file: HubFile, partial: Path, start: int, job: Job) -> None:
    """One answer's bytes, from `start` on if the hub agrees. Raises the library's HTTP errors."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    url, _ = _source(listed, file, job)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if urlsplit(url).netloc != urlsplit(endpoint()).netloc:
        headers.pop("authorization", None)  # the token is the hub's alone
    if start:
        headers["Range"] = f"bytes={start}-"
    session = get_session()
    with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not (response.status_code == 206 and continued):
            start = 0
        done = start
        with partial.open("ab" if start else "wb") as output:
            for chunk in response.iter_bytes():
                job.report(Progress("fetching", file.name, done, file.bytes))
                output.write(chunk)
                done += len(chunk)
                if done > file.bytes:  # the checksum will say that it is wrong
                    output.truncate(file.bytes)
                    return


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _asked(ask: Callable[[], Any], repository: str, job: Job) -> Any:
    """What the library answers; asked again where the hub is busy. Raises ModelError, Stopped."""
    from huggingface_hub.errors import (
        FileMetadataError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    http_error = _http_error()
    for pause in (*PAUSES_S, None):
        try:
            job.check()
            return ask()
        except HFValidationError:
            raise ModelError(
                f"{repository!r} is no repository's name. It reads ORG/REPO, as on the hub's page."
            ) from None
        except OfflineModeIsEnabled:
            raise HubUnreachable(
                "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it to fetch a model."
            ) from None
        except (FileMetadataError, LocalEntryNotFoundError):
            raise _no_hub("does not say what a file's checksum is") from None
        except http_error as error:
            wait = _wait_before_retry(error, pause)
            if wait is None:
                raise _explained(error, repository) from None
            job.pause(wait)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _no_hub("answers with something else than a hub's list") from None
    raise AssertionError("the last try raises or returns")


def _wait_before_retry(error: Any, pause: float | None) -> float | None:
    """Seconds; None where another try would be in vain."""
    status = _status(error)
    if pause is None or status not in (429, 500, 502, 503, 504):
        return None
    asked = error.response.headers.get("Retry-After", "")
    if not asked.isdigit():
        return pause
    return float(asked) if float(asked) <= LONGEST_WAIT_S else None


def _http_error() -> type[Exception]:
    """The base of all errors of the HTTP library under huggingface_hub."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return HTTPError


def _status(error: Any) -> int | None:
    response = getattr(error, "response", None)
    return response.status_code if response is not None else None


def _explained(error: Any, repository: str) -> ModelError:
    from huggingface_hub import get_token
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status = _status(error)
    page = f"{endpoint()}/{repository}"
    if status is None:
        return HubUnreachable(
            f"{endpoint()} cannot be reached ({error or type(error).__name__}). Check the network "
            "and the proxy (HTTPS_PROXY), or name a mirror in HF_ENDPOINT."
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return ModelError(
            f"The hub does not give you {repository} yet. Accept its terms at {page}, then set "
            "HF_TOKEN to a token of your account (`hf auth login` keeps one)."
        )
    if isinstance(error, RevisionNotFoundError | EntryNotFoundError):
        return ModelError(f"{page} lacks the file or the revision. Look there for its names.")
    if status == 401:
        if get_token():
            return ModelError(
                f"The hub refuses your token, or it has no {repository}. Check HF_TOKEN, `hf auth "
                "login`, and the name."
            )
        return ModelError(
            f"There is no {repository} for everybody. Check the name; if it is private or gated, "
            f"accept its terms at {page} and set HF_TOKEN."
        )
    if status == 404:
        return ModelError(f"There is no model {repository} at {endpoint()}. Check the name.")
    if status == 429:
        return ModelError(
            "The hub asks to slow down. Try again in some minutes; with HF_TOKEN it allows more."
        )
    if status >= 500:
        return HubUnreachable(f"{endpoint()} is in trouble (HTTP {status}). Try again later.")
    return ModelError(f"{page} answers HTTP {status}. Look at that page, or try again later.")


def _no_hub(problem: str) -> HubUnreachable:
    return HubUnreachable(
        f"{endpoint()} {problem}. If HF_ENDPOINT is set, it has to name a hub; else a proxy or "
        "firewall may answer in the hub's place."
    )


def remove(repository: str, commit: str) -> bool:
    """Removes a revision from the hub's cache by the library's own rules: files that another
    revision uses stay. False where the cache does not have it."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(hub_cache())
    except CacheNotFound:
        return False
    for cached in cache.repos:
        commits = {revision.commit_hash for revision in cached.revisions}
        if (cached.repo_id, cached.repo_type) == (repository, "model") and commit in commits:
            cache.delete_revisions(commit).execute()
            return True
    return False
