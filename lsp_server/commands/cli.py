"""argv -> settings -> command. Errors are one line that names the remedy, with exit code 2."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lsp_server.settings import Settings, from_environment, parse

T = TypeVar("T")

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
models_app = typer.Typer()
app.add_typer(models_app, name="models")

Model = Annotated[str | None, typer.Option(help="'bundled' or the path of a model folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def settings_from(model: str | None) -> Settings:
    settings, problems = parse(from_environment(os.environ))
    if model is not None:
        settings, more = parse({"model": model}, base=settings)
        problems += more
    for problem in problems:
        typer.echo(f"fimls: {problem}", err=True)
    return settings


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; whatever is known to go wrong ends as one line on stderr and exit
    code 2."""
    from fim import FormatError
    from lsp_server.commands.once import CommandError
    from lsp_server.engines.interface import EngineUnavailable
    from model.errors import ModelError

    try:
        return asyncio.run(work)
    except (CommandError, ModelError, FormatError, EngineUnavailable, OSError) as error:
        typer.echo(f"fimls: {error}", err=True)
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
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


@app.command()
def lsp(
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Accepted; there is no other transport.")
    ] = True,
) -> None:
    """The language server on stdin and stdout, for one editor window."""
    # `fimls lsp` itself is handled in __main__, before this module is loaded; this is its place in
    # the help.


@app.command()
def complete(
    place: Annotated[
        str, typer.Argument(metavar="FILE:LINE:COL", help="1-based; the column counts characters.")
    ],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One completion, from the shell."""
    from lsp_server.commands.once import complete_at

    answer = run(complete_at(place, settings_from(model)))
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    elif answer["text"]:
        typer.echo(answer["text"])
    else:
        typer.echo("fimls: no suggestion here.", err=True)


@app.command()
def demo(
    file: Annotated[
        Path | None, typer.Argument(help="A source file of yours; a sample is used without one.")
    ] = None,
) -> None:
    """Suggestions in a real file, through the real server, drawn as an editor draws them."""
    from lsp_server.commands.demo import show

    run(show(file))


@app.command()
def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A source file of yours; a sample is used without one.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """How fast the model is on this machine, and which others would be fast enough."""
    from lsp_server.commands.bench import show

    run(show(file, settings_from(model), as_json=as_json))


@app.command("eval")
def evaluate(
    where: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER|FILE.jsonl]", help="Source files; without: the held-out packages."
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option("--task", help="What is taken out of the files.")
    ] = "line,column,multi-line,random-span",
    samples: Annotated[int, typer.Option(min=1, help="How many places for each task.")] = 300,
    layouts: Annotated[
        str | None,
        typer.Option("--layout", metavar="spm,psm,anchored", help="Without: all the model knows."),
    ] = None,
    bare: Annotated[
        bool,
        typer.Option(
            "--bare",
            help="The model alone: no healing, copying or post-processing; nothing hidden.",
        ),
    ] = False,
    model: Model = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for this run; repeatable."),
    ] = None,
    versus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Rows of their own with this setting, to compare; repeatable."
        ),
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Beside it, a copy from the text around.")] = True,
    seed: Annotated[int, typer.Option(help="Of the choice of places.")] = 0,
    split: Annotated[
        str, typer.Option(help="Which held-out packages: test or validation.")
    ] = "test",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what each minConfidence would show.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How often the model writes what the author wrote, where spans were taken out of real
    files."""
    from lsp_server.commands.evaluate import show

    run(
        show(
            where,
            settings_from(model),
            split=split,
            tasks=tasks,
            layouts=layouts,
            samples=samples,
            seed=seed,
            bare=bare,
            baseline=baseline,
            pairs=pairs or [],
            versus=versus or [],
            as_json=as_json,
            verbose=verbose,
        )
    )


@engine_app.command("start")
def engine_start(model: Model = None) -> None:
    """Starts the engine, or attaches to the one that runs, and waits until it is ready."""
    from lsp_server.commands.once import start_engine

    typer.echo(run(start_engine(settings_from(model))))


@engine_app.command("stop")
def engine_stop() -> None:
    """Stops every engine of this user."""
    from lsp_server.commands.once import stop_engines

    count = run(stop_engines())
    typer.echo(f"stopped {count} engine{'' if count == 1 else 's'}")


@engine_app.command("status")
def engine_status(as_json: Json = False) -> None:
    """Shows every engine of this user."""
    from lsp_server.commands.once import engine_statuses

    found = run(engine_statuses())
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_engines(found)


@app.command()
def status(as_json: Json = False) -> None:
    """What runs, and what was shown and accepted: counts that never leave this machine."""
    from lsp_server.commands.once import engine_statuses
    from lsp_server.session.usage import read_usage, summary

    engines, sessions = run(engine_statuses()), read_usage()
    if as_json:
        typer.echo(
            json.dumps(
                {"engines": engines, "sessions": [session.to_json() for session in sessions]}
            )
        )
        return
    print_engines(engines)
    for line in summary(sessions):
        typer.echo(line)


def print_engines(found: list[dict[str, Any]]) -> None:
    if not found:
        typer.echo("no engine is running")
    for status in found:
        memory = f"{status['memory_bytes'] / 1e6:.0f} MB" if status.get("memory_bytes") else "?"
        typer.echo(
            f"{status['model']}: {status['state']}, {status['device']} {status['dtype']}, "
            f"{memory}, "
            f"{status['served']} requests, idle for {status['idle_s']:.0f} s, process "
            f"{status['pid']}"
        )


@engine_app.command("serve")
def engine_serve(
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve it.")
    ] = "127.0.0.1:8712",
    model: Model = None,
) -> None:
    """Serves the OpenAI completions dialect to other machines, for those that have the key in
    FIMLS_API_KEY."""
    import sys

    settings = settings_from(model)
    arguments = [
        "--model",
        settings.model,
        "--listen",
        f"tcp:{listen}",
        "--idle-timeout",
        "0",
        "--device",
        settings.engine.device,
        "--dtype",
        settings.engine.dtype,
        "--quantization",
        settings.engine.quantization,
        "--threads",
        str(settings.engine.threads or 0),
        "--cache-bytes",
        str(settings.engine.cache_memory * 2**20),
    ]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "model.engine", *arguments])


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, model: Model = None, as_json: Json = False) -> None:
    """The models that are here: size, and memory at each precision."""
    from lsp_server.commands.once import known_models

    if context.invoked_subcommand:
        if model or as_json:
            raise typer.BadParameter(f"put the options behind {context.invoked_subcommand!r}")
        return
    found = run(known_models(settings_from(model)))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    for each in [] if as_json else found:
        memory = ", ".join(
            f"{name} {size / 1e6:,.1f} MB" for name, size in each["weights_bytes"].items()
        )
        typer.echo(
            f"{each['name']}: {each['architecture']}, {each['parameters'] / 1e6:,.1f}M parameters, "
            f"{each['max_positions']:,} tokens of context, {each['disk_bytes'] / 1e6:,.1f} MB on "
            "disk; "
            f"weights in memory: {memory}"
        )
        if each["languages"]:
            others = (
                f"; for others use {each['other_languages']}" if each["other_languages"] else ""
            )
            typer.echo(f"  trained on {', '.join(each['languages'])}{others}")


@models_app.command("export")
def models_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    layout: Annotated[
        str, typer.Option("--format", metavar="hf|gguf", help="For transformers, or for llama.cpp.")
    ],
    model: Model = None,
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; for gguf also q8_0.")
    ] = "float32",
) -> None:
    """Writes a model as a folder for transformers, or as a GGUF file for llama.cpp."""
    import sys

    # A process of its own: this one loads no torch.
    arguments = [
        "--format",
        layout,
        "--dtype",
        dtype,
        "--",
        settings_from(model).model,
        str(folder),
    ]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "model.export", *arguments])
