"""Declares the commands of `fimls`: their arguments, options and help.

Settings come from the user's settings file, FIMLS_ variables and options. An error that a command
expects is printed as one line that names the remedy, with exit code 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from lsp_server.settings import Settings, parse
from lsp_server.user_settings import settings_here

app = typer.Typer(
    name="fimls",
    help="A private code assistant: fill-in-the-middle completions from a model on your own "
    "machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
engine_app = typer.Typer(
    help="The process that holds the model; it is started by itself when needed.",
    no_args_is_help=True,
)
app.add_typer(engine_app, name="engine")


class ModelsGroup(TyperGroup):
    """`fimls models NAME` is `fimls models show NAME`, where NAME is no command."""

    # The types of both are those of a click that is private to typer.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0].startswith("-") or self.get_command(ctx, args[0])
        return super().resolve_command(ctx, args if known else ["show", *args])


models_app = typer.Typer(cls=ModelsGroup)
app.add_typer(models_app, name="models")

Model = Annotated[
    str | None, Option(help="'bundled', a name of `fimls models`, or the path of a model.")
]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs.")]
SourceFile = Annotated[
    Path | None, Argument(help="A source file of yours; a sample is used without one.")
]

BARE_HELP = "The model alone: no healing, copying or post-processing; nothing hidden."
EXECUTE_HELP = (
    "Instead: tasks with tests, as HumanEval.jsonl; runs what the model writes, in a sandbox."
)
WITHOUT_HELP = "Rows of their own that lack this filter of suggestions."
ANSWERS_HELP = "Keeps the model's answers there; those that it has are not asked for again."
VERSUS_HELP = "Rows of their own with this setting, to compare; repeatable."


def read_settings(model: str | None) -> tuple[Settings, tuple[str, ...]]:
    """The settings of this machine, with --model where it was given, and what is wrong."""
    settings, problems = settings_here(os.environ)
    if model is not None:
        settings, more = parse({"model": model}, base=settings)
        problems += more
    return settings, problems


def settings_from(model: str | None) -> Settings:
    """What `read_settings` gives; prints what is wrong."""
    from fim.characters import escaped

    settings, problems = read_settings(model)
    for problem in problems:
        typer.echo(escaped(f"fimls: {problem}"), err=True)
    return settings


def run(command: Coroutine[Any, Any, None]) -> None:
    with expected_errors():
        asyncio.run(command)


@contextlib.contextmanager
def expected_errors() -> Iterator[None]:
    """Around a command: an error that it expects ends as one line on stderr and exit code 2."""
    from fim import FormatError
    from fim.characters import escaped
    from lsp_server.commands.errors import CommandError
    from lsp_server.engines.interface import EngineUnavailable
    from model.errors import ModelError

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (CommandError, ModelError, FormatError, EngineUnavailable, OSError) as error:
        typer.echo(escaped(f"fimls: {error}").replace("\n", "\\n"), err=True)
        raise typer.Exit(2) from None


def print_version(wanted: bool) -> None:
    if wanted:
        from lsp_server import __version__

        typer.echo(f"fimls {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


@app.command()
def lsp(
    stdio: Annotated[bool, Option("--stdio", help="Accepted; there is no other transport.")] = True,
) -> None:
    """The language server on stdin and stdout, for one editor window."""
    # Only for --help: __main__ runs `fimls lsp` itself, without loading this module.


@app.command()
def complete(
    place: Annotated[
        str, Argument(metavar="FILE:LINE:COL", help="1-based; the column counts characters.")
    ],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One completion, from the shell."""
    from lsp_server.commands.complete import print_completion

    run(print_completion(place, settings_from(model), as_json=as_json))


@app.command()
def demo(file: SourceFile = None, model: Model = None) -> None:
    """Suggestions in a real file, through the real server, drawn as an editor draws them."""
    from lsp_server.commands.demo import print_demo

    run(print_demo(file, model))


@app.command()
def doctor(
    place: Annotated[
        str | None,
        Argument(metavar="[FILE[:LINE:COL]]", help="Also why no suggestion comes there."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
    window: Annotated[
        bool, Option("--window", hidden=True, help="The server sends what its editor has set.")
    ] = False,
) -> None:
    """What this machine can run, measured; what is wrong, and how to mend it."""
    from lsp_server.commands.doctor.examine import print_report

    settings, problems = read_settings(model)
    if window:
        from lsp_server.session.layers import SettingsLayers

        layers, problems = SettingsLayers.from_json(sys.stdin.read())
        settings = layers.settings
    with expected_errors():
        if not print_report(place, settings, problems, as_json=as_json):
            raise typer.Exit(1)


@app.command()
def bench(file: SourceFile = None, model: Model = None, as_json: Json = False) -> None:
    """How fast the model is on this machine, and which others would be fast enough."""
    from lsp_server.commands.bench import print_bench

    run(print_bench(file, settings_from(model), as_json=as_json))


@app.command("eval")
def evaluate(
    where: Annotated[
        Path | None,
        Argument(
            metavar="[FOLDER|FILE.jsonl]", help="Source files; without: the held-out packages."
        ),
    ] = None,
    tasks: Annotated[
        str, Option("--task", help="Which spans are taken out of the files.")
    ] = "line,column,multi-line,random-span",
    samples: Annotated[int, Option(min=1, help="How many places for each task.")] = 300,
    layouts: Annotated[
        str | None,
        Option("--layout", metavar="NAME,...", help="Without: all the model knows."),
    ] = None,
    bare: Annotated[bool, Option("--bare", help=BARE_HELP)] = False,
    model: Model = None,
    pairs: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="A setting for this run; repeatable."),
    ] = None,
    versus: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help=VERSUS_HELP)] = None,
    without: Annotated[str | None, Option(metavar="NAME,...|each", help=WITHOUT_HELP)] = None,
    baseline: Annotated[bool, Option(help="Also score copies from the text around.")] = True,
    seed: Annotated[int, Option(help="For the choice of places.")] = 0,
    split: Annotated[str, Option(help="Which held-out packages: test or validation.")] = "test",
    execute: Annotated[Path | None, Option(metavar="FILE", help=EXECUTE_HELP)] = None,
    answers: Annotated[Path | None, Option(metavar="FILE", help=ANSWERS_HELP)] = None,
    verbose: Annotated[
        bool, Option("--verbose", help="Also what each minConfidence would show.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How often the model writes what the author wrote, where spans were taken out of real
    files."""
    from lsp_server.commands.evaluation.contestants import Plan
    from lsp_server.commands.evaluation.evaluate import print_evaluation

    command = print_evaluation(
        where,
        settings_from(model),
        Plan(
            samples=samples,
            bare=bare,
            baseline=baseline,
            seed=seed,
            file=execute,
            answers=answers,
        ),
        tasks=tasks,
        layouts=layouts,
        without=without,
        split=split,
        set_pairs=pairs or [],
        versus=versus or [],
        verbose=verbose,
        as_json=as_json,
    )
    run(command)


@app.command()
def status(as_json: Json = False) -> None:
    """Shows the engines and the counts of suggestions, which never leave this machine."""
    from lsp_server.commands.engine import print_status

    run(print_status(as_json=as_json))


@engine_app.command("start")
def engine_start(model: Model = None) -> None:
    """Starts the engine, or attaches to the one that runs, and waits until it is ready."""
    from lsp_server.commands.engine import start_engine

    run(start_engine(settings_from(model)))


@engine_app.command("stop")
def engine_stop() -> None:
    """Stops every engine of this user."""
    from lsp_server.commands.engine import stop_engines

    run(stop_engines())


@engine_app.command("status")
def engine_status(as_json: Json = False) -> None:
    """Shows every engine of this user."""
    from lsp_server.commands.engine import print_engines

    run(print_engines(as_json=as_json))


@engine_app.command("serve")
def engine_serve(
    listen: Annotated[
        str, Option(metavar="HOST:PORT", help="Where to serve it.")
    ] = "127.0.0.1:8712",
    model: Model = None,
    certificate: Annotated[str, Option(metavar="FILE", help="For TLS: a PEM file.")] = "",
    certificate_key: Annotated[
        str, Option(metavar="FILE", help="Its key, if the certificate's file does not hold it.")
    ] = "",
) -> None:
    """Serves the OpenAI completions dialect to other machines, for those that have the key in
    FIMLS_API_KEY."""
    from lsp_server.commands.engine import serve_engine

    serve_engine(listen, settings_from(model), certificate, certificate_key)


@app.command()
def pull(
    name: Annotated[str, Argument(metavar="NAME", help="Of `fimls models`, or ORG/REPO[:FILE].")],
    accept_licence: Annotated[
        str, Option(metavar="LICENCE", help="You have read it and accept it; without: asks.")
    ] = "",
    offline: Annotated[bool, Option("--offline", help="Only look at what is here.")] = False,
) -> None:
    """Fetches a model: with resume and checksums, into the cache of Hugging Face's library."""
    from lsp_server.commands.pull import pull_model

    with expected_errors():
        pull_model(name, accepted=accept_licence, offline=offline)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, model: Model = None, as_json: Json = False) -> None:
    """The models that are here and those that can be pulled: size, memory, licence."""
    from lsp_server.commands.models import print_models

    if context.invoked_subcommand is None:
        run(print_models(settings_from(model), as_json=as_json))
    elif model or (as_json and context.invoked_subcommand != "show"):
        raise typer.BadParameter(f"put the options after {context.invoked_subcommand!r}")


@models_app.command("show")
def models_show(
    context: typer.Context,
    name: Annotated[str, Argument(metavar="NAME", help="As `fimls models` lists it, or a path.")],
    as_json: Json = False,
) -> None:
    """The memory that one model takes at each precision. A folder with only config.json will do;
    `show` can be left out."""
    from lsp_server.commands.footprint import print_footprint

    with expected_errors():
        print_footprint(
            name, as_json=as_json or bool(context.parent and context.parent.params["as_json"])
        )


@models_app.command("use")
def models_use(
    name: Annotated[str, Argument(metavar="NAME", help="As `fimls models` lists it, or a path.")],
) -> None:
    """Chooses the model for this user on this machine, as "Choose Model" in an editor does."""
    from lsp_server.commands.models import use_model

    with expected_errors():
        use_model(name)


@models_app.command("remove")
def models_remove(
    name: Annotated[str, Argument(metavar="NAME", help="As `fimls models` lists it.")],
    yes: Annotated[bool, Option("--yes", help="Without asking.")] = False,
) -> None:
    """Removes a model that fimls pulled."""
    from lsp_server.commands.pull import remove_model

    with expected_errors():
        remove_model(name, yes=yes)


@models_app.command("export")
def models_export(
    folder: Annotated[Path, Argument(metavar="DIR", help="A new or an empty folder.")],
    layout: Annotated[
        str, Option("--format", metavar="hf|gguf", help="For transformers, or for llama.cpp.")
    ],
    model: Model = None,
    dtype: Annotated[
        str, Option(help="float32, float16 or bfloat16; for gguf also q8_0.")
    ] = "float32",
) -> None:
    """Writes a model as a folder for transformers, or as a GGUF file for llama.cpp."""
    from lsp_server.commands.models import export_model

    export_model(settings_from(model).model, folder, layout=layout, dtype=dtype)
