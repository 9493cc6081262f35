"""The import rules of the rooms, read off the syntax tree: lazy imports and those for type checking
count too.

`fim` is text and token ids, `model` is token ids and weights; neither knows the other or the
editor. `lsp_server` joins them, and of `model` it sees only what loads no torch. Inside a room a
folder, or a module beside the folders, imports only the ones that the tables below name. A new edge
is a decision: it belongs here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("fim", "model", "lsp_server")

MODEL = {
    "errors": "",
    "machine": "",
    "private_files": "",
    "regular_files": "",
    "catalogue": "errors private_files regular_files",
    "tokenizer": "errors regular_files",
    "ggml": "",
    "decoder": "errors",
    "families": "decoder errors",
    "weights": "catalogue tokenizer families decoder ggml errors regular_files",
    "cpu": "decoder ggml errors machine private_files regular_files",
    "gpu": "decoder errors",
    "precision": "decoder errors machine",
    "placement": "precision weights families decoder ggml errors machine private_files",
    "generation": "decoder errors",
    "transformers_decoder": "weights families decoder errors",
    "footprint": "families decoder cpu",
    "prepared": "weights cpu decoder private_files",
    "loading": "prepared transformers_decoder catalogue weights families cpu gpu precision "
    "placement footprint generation decoder tokenizer errors",
    "heads": "loading placement generation precision weights catalogue families decoder errors",
    "probe": "cpu machine",
    "prefix_cache": "weights generation decoder errors private_files",
    "engine": "prefix_cache loading prepared weights cpu generation decoder errors machine "
    "private_files",
    "export": "loading precision weights families decoder tokenizer errors",
}
LSP_SERVER = {
    "settings": "",
    "documents": "",
    "folders": "",
    "logs": "folders",
    "user_settings": "settings folders",
    "daemon": "",
    "scheduler": "logs",
    "engines": "settings daemon folders logs",
    "context": "daemon documents logs",
    "session": "context engines documents settings user_settings daemon scheduler folders logs",
    "completion": "session context engines documents settings scheduler logs",
    "protocol": (
        "session completion context engines documents settings user_settings daemon scheduler "
        "folders logs"
    ),
    "commands": "protocol session completion context engines documents settings user_settings "
    "folders logs",
    "__main__": "commands protocol engines logs",
}
LSP_SERVER_SEES = {
    "model.catalogue.download",
    "model.catalogue.entries",
    "model.catalogue.installed",
    "model.catalogue.places",
    "model.catalogue.recommend",
    "model.catalogue.records",
    "model.weights.files",
    "model.weights.folder",
    "model.tokenizer",
    "model.errors",
    "model.footprint",
    "model.machine",
    "model.prepared.files",
    "model.private_files",
    "model.regular_files",
    "model.engine.log",
    "model.engine.options",
    "model.engine.rendezvous",
    "model.engine.rules",
}
# Packages that only these files may import: everything else works without them.
ONLY_IN = {
    "pygls": "lsp_server/protocol/",
    "lsprotocol": "lsp_server/protocol/",
    "platformdirs": ("lsp_server/", "model/catalogue/places.py"),
    "huggingface_hub": "model/catalogue/hub.py",
    "typer": "lsp_server/",
    "torch": "model/",
    "safetensors": "model/",
    "tokenizers": ("model/tokenizer.py", "model/weights/gguf/"),
    "aiohttp": ("lsp_server/", "model/engine/"),
    "filelock": (
        "lsp_server/",
        "model/engine/process.py",
        "model/engine/rendezvous.py",
        "model/catalogue/",
    ),
    "gguf": ("model/export/gguf.py", "model/weights/gguf/tensors.py"),
    "numba": "model/cpu/blocks/compiled/",
    "llvmlite": ("model/cpu/code_cache.py", "model/cpu/blocks/"),
    "tree_sitter": "fim/",
    "transformers": "model/transformers_decoder.py",
    "accelerate": "model/placement/",
    "peft": "model/heads/lora.py",
    "flash_attn": "model/heads/attention.py",
    "bitsandbytes": "model/precision/bitsandbytes_linear.py",
}


@dataclass(frozen=True)
class Import:
    file: str  # relative to the repository
    name: str  # dotted; of a module of ours, the module itself
    # runs, or would be read by a type checker, when the module is loaded; False inside a function
    at_load: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file} imports {self.name}"


def files(room: str) -> list[Path]:
    return sorted(
        p
        for p in (ROOT / room).rglob("*.py")
        if not {"data", "runs"} & set(p.relative_to(ROOT).parts)
    )


def nodes(tree: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        yield node, at_load
        yield from nodes(
            node,
            at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
        )


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(room: str) -> list[Import]:
    ours = {dotted_name(p) for r in ROOMS for p in files(r)}
    found = []
    for path in files(room):
        file = path.relative_to(ROOT).as_posix()
        for node, at_load in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{file}: imports are absolute"
                names = [
                    n if (n := f"{node.module}.{a.name}") in ours else node.module
                    for a in node.names
                ]
            else:
                continue
            found += [Import(file, name, at_load) for name in dict.fromkeys(names)]
    return found


def all_imports() -> list[Import]:
    return [i for room in ROOMS for i in imports(room)]


def listed(offending: list[Import]) -> str:
    return "\n".join(map(str, offending))


def test_the_syntax_tree_is_read_right() -> None:
    """The rules below would hold of an empty list, too."""
    found = {(i.file, i.name, i.at_load) for i in all_imports()}
    assert (
        "model/cpu/upgrade.py",
        "model.cpu.code_cache",
        True,
    ) in found  # from model.cpu import code_cache
    assert (
        "model/engine/loading.py",
        "model.engine.worker",
        True,
    ) in found  # under TYPE_CHECKING
    assert ("model/engine/loading.py", "model.loading", False) in found  # in a method
    assert len(found) > 100


@pytest.mark.parametrize(
    ("room", "others"), [("fim", {"model", "lsp_server"}), ("model", {"fim", "lsp_server"})]
)
def test_fim_and_model_know_neither_each_other_nor_the_server(room: str, others: set[str]) -> None:
    assert not (wrong := [i for i in imports(room) if i.package in others]), listed(wrong)


def test_nothing_imports_benchmarks_training_or_tests() -> None:
    assert not (
        wrong := [i for i in all_imports() if i.package in {"benchmarks", "training", "tests"}]
    ), listed(wrong)


def test_fim_needs_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"fim"}
    wrong = [
        i
        for i in imports("fim")
        if i.package not in allowed and not i.package.startswith("tree_sitter")
    ]
    assert not wrong, listed(wrong)


def test_the_server_sees_only_the_torch_free_part_of_model() -> None:
    wrong = [
        i for i in imports("lsp_server") if i.package == "model" and i.name not in LSP_SERVER_SEES
    ]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    wrong = [
        i for i in all_imports() if i.package == package and not i.file.startswith(ONLY_IN[package])
    ]
    assert not wrong, listed(wrong)


def test_training_loads_without_the_server_and_its_packages() -> None:
    barred = {"lsp_server", "pygls", "lsprotocol", "platformdirs", "bitsandbytes"}
    assert not (wrong := [i for i in imports("training") if i.at_load and i.package in barred]), (
        listed(wrong)
    )


@pytest.mark.parametrize(("room", "table"), [("model", MODEL), ("lsp_server", LSP_SERVER)])
def test_inside_a_room_imports_run_one_way(room: str, table: dict[str, str]) -> None:
    edges: dict[str, set[str]] = {part(Path(p).relative_to(ROOT)): set() for p in files(room)}
    for i in imports(room):
        if i.package == room and i.name != room:
            edges[part(Path(i.file))].add(i.name.split(".")[1])
    edges.pop("__init__")  # its names are for readers outside; it imports nothing when loaded
    allowed = {name: {name, *names.split()} for name, names in table.items()}
    assert edges.keys() == allowed.keys()
    assert {name: beyond for name in edges if (beyond := edges[name] - allowed[name])} == {}


def part(file: Path) -> str:
    """The folder or the module of a room that a file belongs to."""
    return file.parts[1].removesuffix(".py")


def test_modules_do_not_import_each_other_in_circles() -> None:
    edges: dict[str, set[str]] = {}
    for i in all_imports():
        if i.package in ROOMS and i.at_load:
            edges.setdefault(dotted_name(ROOT / i.file), set()).add(i.name)
    edges.pop("model")  # its names are for readers outside; it imports nothing when loaded
    list(TopologicalSorter(edges).static_order())  # raises CycleError


HEAVY = {"torch", "transformers", "accelerate", "bitsandbytes", "numpy"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (["model", *sorted(LSP_SERVER_SEES)], HEAVY | {"aiohttp"}),
        (
            [
                dotted_name(p)
                for r in ("fim", "lsp_server")
                for p in files(r)
                if p.stem != "__main__"
            ],
            HEAVY,
        ),
        (["model.engine.process"], HEAVY),
        (
            [
                "model.loading",
                "model.engine.worker",
                "model.engine.http.openai_api",
                "model.engine.process",
            ],
            HEAVY - {"torch", "numpy"},
        ),
    ],
    ids=["model alone", "the server", "an engine that is starting", "a whole engine"],
)
def test_heavy_packages_are_loaded_only_where_they_are_used(
    modules: list[str], absent: set[str]
) -> None:
    code = f"import sys, {', '.join(modules)}; print(*(set(sys.modules) & {absent!r}))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    "path", [p for r in ROOMS for p in files(r)], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_a_file_says_what_it_is_for_and_its_functions_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    too_long = {name for name, length in lengths.items() if length > 60}
    assert too_long == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_has_few_modules(room: str) -> None:
    folders = Counter(p.parent for p in files(room) if p.name not in ("__init__.py", "__main__.py"))
    assert {folder: n for folder, n in folders.items() if n > 10} == {}
