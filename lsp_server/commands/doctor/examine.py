"""`fimls doctor`: what this machine can run, what is wrong with the installation, and the mends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fim import FormatError
from lsp_server.commands.doctor import installation
from lsp_server.commands.doctor.findings import Finding, note, wrong
from lsp_server.commands.doctor.machine import disk_bytes_per_s, measure_machine
from lsp_server.commands.doctor.place import examine_place
from lsp_server.commands.errors import CommandError
from lsp_server.folders import cache_folder
from lsp_server.session.prompter import TIME_BUDGET_MS, Prompter
from lsp_server.settings import Settings
from model.catalogue.entries import entry_of
from model.catalogue.recommend import (
    LINE_TOKENS,
    Estimate,
    Recommendation,
    advice,
    estimate,
    estimates,
    recommend,
)
from model.errors import ModelError
from model.weights.folder import find_model

BUSY = 0.5  # of the cores: then measured speeds say little


@dataclass(frozen=True, slots=True)
class Report:
    """machine: the figures of model/probe.py and of the disk; {} where they could not be measured.
    page: how the completion at the place that was asked about came about, as Markdown."""

    findings: tuple[Finding, ...]
    machine: dict[str, Any]
    estimates: tuple[Estimate, ...]
    chosen: Estimate | None  # of the model that the settings name
    recommendation: Recommendation | None
    page: str = ""

    @property
    def is_well(self) -> bool:
        return all(finding.kind != "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "well": self.is_well,
            "findings": [finding.to_json() for finding in self.findings],
            "machine": self.machine,
            "estimates": [asdict(each) for each in self.estimates],
            "chosen": asdict(self.chosen) if self.chosen else None,
            "recommendation": self.recommendation.to_json() if self.recommendation else None,
            "page": self.page,
        }

    def to_markdown(self) -> str:
        parts = ["# fimls doctor"]
        for kind, title in (("wrong", "Wrong"), ("note", "Notes"), ("fine", "Fine")):
            lines = [f"- {finding}" for finding in self.findings if finding.kind == kind]
            if lines:
                parts += [f"## {title}", "\n".join(lines)]
        if self.machine:
            parts += ["## This machine", _machine_table(self.machine)]
            parts += ["## Models", *self._models()]
        if self.page:
            parts.append(self.page.strip())
        return "\n\n".join(parts) + "\n"

    def _models(self) -> list[str]:
        parts = [advice(self.recommendation)]
        best = self.recommendation
        if best is not None:
            parts.append(
                f"Settings for it: {best.precision} weights, timeBudget {best.time_budget_ms} ms, "
                f"of a prompt {best.context_tokens:,} tokens at once and the rest in idle time; a "
                f"line comes after about {best.suggestion_ms:,.0f} ms."
            )
        shown = list(self.estimates)
        if self.chosen is not None and self.chosen not in shown:
            shown.insert(0, self.chosen)
        rows = ["| model | memory | a line | a new file | |", "| --- | --- | --- | --- | --- |"]
        for each in shown:
            name = f"{each.name} (chosen)" if each == self.chosen else each.name
            rows.append(
                f"| {name} | {each.memory_bytes / 1e9:.1f} GB | {each.line_ms:,.0f} ms | "
                f"{each.file_ms / 1000:,.1f} s | {each.verdict} |"
            )
        parts.append("\n".join(rows))
        parts.append(f"Estimates; a line has {LINE_TOKENS} tokens, none of them drafted.")
        return parts


def _machine_table(machine: dict[str, Any]) -> str:
    memory = machine.get("available_memory")
    rows = {
        "device": machine.get("gpu") or machine["device"],
        "processor and instruction sets": machine["processor"],
        "threads": machine["threads"],
        "memory free": f"{memory / 1e9:.1f} GB" if memory is not None else "unknown",
        f"weights read ({machine['precision']})": f"{machine['read_bytes_per_s'] / 1e9:,.1f} GB/s",
        f"products ({machine['precision']})": f"{machine['operations_per_s'] / 1e12:,.2f} Top/s",
    }
    if "float_operations_per_s" in machine:
        rows["products (float32)"] = f"{machine['float_operations_per_s'] / 1e12:,.2f} Top/s"
    if "disk_bytes_per_s" in machine:
        rows["disk written"] = f"{machine['disk_bytes_per_s'] / 1e6:,.0f} MB/s"
    rows["PyTorch"] = machine["torch"]
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def examine(settings: Settings, place: str | None = None, problems: Iterable[str] = ()) -> Report:
    """Measures and looks at everything; takes some 10 s, so call it on a thread of its own.

    place: FILE or FILE:LINE:COL, to tell why no suggestion comes there. problems: with the
    settings. Raises nothing that a user could cause: that is in the findings.
    """
    findings = [wrong(f"The settings: {problem}.") for problem in problems]
    findings += installation.packages()
    findings += installation.folders(settings)
    findings += _load()
    machine: dict[str, Any] = {}
    try:
        machine = measure_machine(settings.engine)
    except CommandError as error:
        findings.append(wrong(f"{str(error)[:1].upper()}{str(error)[1:]}."))
    with contextlib.suppress(OSError):  # the folders' findings tell
        machine |= {"disk_bytes_per_s": disk_bytes_per_s(cache_folder())} if machine else {}
    findings += installation.model(settings, machine.get("available_memory"))
    findings += asyncio.run(installation.engines())
    page = ""
    if place is not None:
        more, page = asyncio.run(examine_place(place, settings))
        findings += more
    found = estimates(machine) if machine else []
    best = recommend(found, machine, TIME_BUDGET_MS) if machine else None
    return Report(tuple(findings), machine, tuple(found), _chosen(settings, machine), best, page)


def _load() -> list[Finding]:
    """A note where other programs use the cores: the figures are then too low."""
    if not hasattr(os, "getloadavg"):  # Windows
        return []
    busy = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if busy < BUSY * cores:
        return []
    text = f"Other programs keep {busy:.1f} of {cores} cores busy: the figures below are too low."
    return [note(text, "Call fimls doctor again when they rest.")]


def _chosen(settings: Settings, machine: dict[str, Any]) -> Estimate | None:
    """None also for a model that cannot fill in the middle."""
    if not machine or settings.remote.url:
        return None
    try:
        Prompter.for_settings(settings)
        model = find_model(settings.model)
        entry = entry_of(model.path)
        if entry is not None and entry.parameters is not None:
            return estimate(entry.name, entry.parameters, machine)
        return estimate(model.name, model.parameters, machine)
    except (ModelError, FormatError, OSError):  # the model's findings tell
        return None


def print_report(
    place: str | None, settings: Settings, problems: Iterable[str], *, as_json: bool
) -> bool:
    """The command; whether all is well."""
    report = examine(settings, place, problems)
    if as_json:
        both = report.to_json() | {"markdown": report.to_markdown()}
        print(json.dumps(both))
    else:
        print(report.to_markdown(), end="")
    return report.is_well
