"""Which model of the catalogue suits a machine, by two figures of it.

They are the bytes of weights that it reads in a second, and its operations in a second;
model/probe.py measures both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.catalogue.entries import entries

LINE_TOKENS = 12  # of a suggested line
FILE_TOKENS = 2000  # that are read when a file is opened
WEIGHTS_TO_MEMORY = 1.25
VERDICTS = (  # milliseconds for a line, the verdict, the verdict in a sentence
    (300, "while you type", "should keep up with typing"),
    (1000, "at a pause", "should answer at a pause"),
)
LEAST_CONTEXT = 256  # tokens
BUDGET_STEP_MS = 50


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory and the times of a model on this machine, at `precision`."""

    name: str
    parameters: int
    precision: str
    memory_bytes: int
    line_ms: float  # from a typed key to a suggested line
    file_ms: float  # to read a file that was opened
    verdict: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A model and the settings for it. Of a prompt, context_tokens are read within the time
    budget; what is longer is read in idle time."""

    model: str
    precision: str
    context_tokens: int
    time_budget_ms: int
    suggestion_ms: float
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(name: str, parameters: int, machine: Mapping[str, Any]) -> Estimate:
    """machine: the figures of model/probe.py. A line takes one step for the typed text and one for
    each token, and a step reads every weight once."""
    weights = parameters * machine["bytes_a_weight"]
    memory = round(WEIGHTS_TO_MEMORY * weights)
    line_ms = 1000 * (1 + LINE_TOKENS) * weights / machine["read_bytes_per_s"]
    file_ms = 1000 * 2 * parameters * FILE_TOKENS / machine["operations_per_s"]
    verdict = _verdict(line_ms, memory, machine["available_memory"])
    return Estimate(name, parameters, machine["precision"], memory, line_ms, file_ms, verdict)


def estimates(machine: Mapping[str, Any]) -> list[Estimate]:
    """One for each entry of the catalogue whose size is known, the smallest first."""
    found = []
    for entry in entries().values():
        if entry.parameters is not None:
            found.append(estimate(entry.name, entry.parameters, machine))
    return sorted(found, key=lambda each: each.parameters)


def _verdict(line_ms: float, memory: int, available_memory: int | None) -> str:
    if available_memory is not None and memory > available_memory:
        return "does not fit"
    for most_ms, verdict, _ in VERDICTS:
        if line_ms <= most_ms:
            return verdict
    return "too slow"


def recommend(
    found: Sequence[Estimate], machine: Mapping[str, Any], budget_ms: float
) -> Recommendation | None:
    """The largest model that keeps up with typing, else with pauses; None where none does.

    Only models with a plain open-source licence, of families of which one was measured. budget_ms:
    the default of the setting timeBudget.
    """
    known = entries()
    measured = {entry.fim_format for entry in known.values() if entry.measured}
    for _, verdict, words in VERDICTS:
        for each in reversed(found):
            entry = known[each.name]
            if each.verdict != verdict or entry.licence.ask or entry.fim_format not in measured:
                continue
            steps = -(-max(budget_ms, each.line_ms) // BUDGET_STEP_MS)
            budget = int(steps * BUDGET_STEP_MS)
            most = machine["operations_per_s"] * budget / 1000 / (2 * each.parameters)
            context = max(LEAST_CONTEXT, 1 << max(0, int(most).bit_length() - 1))
            return Recommendation(
                model=each.name,
                precision=each.precision,
                context_tokens=min(context, entry.context or context),
                time_budget_ms=budget,
                suggestion_ms=each.line_ms,
                sentence=f"{each.name} {words} here: `fimls pull {each.name}`.",
            )
    return None


def advice(recommendation: Recommendation | None) -> str:
    """One sentence."""
    if recommendation is not None:
        return recommendation.sentence
    return (
        "Of the larger models none is fast enough here; the one that ships with fimls is the "
        "choice."
    )
