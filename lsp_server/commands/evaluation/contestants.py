"""The ways to ask that `fimls eval` compares, each with settings and a layout of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fim import CursorContext, Layout
from fim.evaluation.samples import TASKS, Task
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks, the samples and the ways to ask."""

    tasks: Sequence[Task] = TASKS
    samples: int = 300  # of each task
    layouts: Sequence[Layout] | None = None  # None: all that the model saw in training
    bare: bool = False  # the model alone, without the rest of the product
    baseline: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to ask, in all tasks."""

    name: str
    settings: Settings
    prompter: Prompter  # its min_confidence is 0: every answer is seen
    layout: Layout
    threshold: float | None  # the product hides less sure answers; None: a bare model hides nothing

    @property
    def model(self) -> str:
        return model_name(self.settings)


def model_name(settings: Settings) -> str:
    if settings.remote.url:
        return settings.remote.model or settings.remote.url
    return settings.model


def line_up(variants: Mapping[str, Settings], plan: Plan) -> list[Contestant]:
    """A contestant for each variant in each layout, named "LAYOUT VARIANT".

    Raises ModelError, or FormatError for a layout that the model never saw.
    """
    contestants = []
    for variant, settings in variants.items():
        prompter = Prompter.for_settings(settings)
        threshold: float | None = prompter.min_confidence
        prompter = replace(prompter, min_confidence=0.0)
        if plan.bare:
            threshold = None
            prompter = replace(prompter, heal_tokens=False, copying=None)
        for layout in plan.layouts or prompter.format.layouts:
            in_layout = replace(prompter, layout=layout)
            in_layout.request(CursorContext("", ""), settings, "eval")  # raises FormatError
            name = f"{layout} {variant}".rstrip()
            contestants.append(Contestant(name, settings, in_layout, layout, threshold))
    return contestants
