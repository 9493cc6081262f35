"""The import rules of the rooms, read off the syntax tree: lazy imports and those for type checking count too.

`fim` is text and token ids, `model` is token ids and weights; neither knows the other or the editor. `lsp_server`
joins them, and of `model` it sees only what loads no torch. Inside `model` a file may import what the table below gives
it and no more. A new edge is a decision: it belongs here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("fim", "model", "lsp_server")

MODEL_MAY_IMPORT = {
    "__init__": "loading tokenizer",
    "errors": "",
    "config": "errors",
    "kv_cache": "config",
    "layers": "config kv_cache",
    "decoder": "config kv_cache layers",
    "sampling": "",
    "healing": "",
    "copying": "",
    "matches": "",
    "speculative": "matches",
    "generate": "copying decoder healing kv_cache matches sampling speculative",
    "hub": "config errors",
    "tokenizer": "errors",
    "starcoder2": "config",
    "stablelm": "config",
    "machine": "",
    "options": "",
    "kernels": "machine",
    "machine_code": "compiled_step machine",
    "compiled_step": "",
    "probe": "kernels machine",
    "quantize": "config kernels layers machine",
    "step": "decoder kernels kv_cache layers quantize",
    "compiled": "compiled_step decoder kernels kv_cache layers machine_code quantize step",
    "bits": "errors layers",
    "graphs": "decoder kv_cache layers",
    "weights": "bits config decoder errors graphs hub layers machine quantize stablelm starcoder2 step",
    "loading": "bits copying decoder errors generate healing hub kv_cache sampling speculative tokenizer weights",
    "gguf_file": "config errors hub weights",
    "export": "errors gguf_file hub loading tokenizer weights",
    "packed_ids": "",
    "prefix_store": "errors hub kv_cache machine packed_ids",
    "prefix_cache": "decoder kv_cache options packed_ids prefix_store",
    "engine": "copying generate loading machine options prefix_cache prefix_store sampling speculative",
    "dialect": "copying engine errors generate loading sampling",
    "engine_loading": "compiled engine loading machine options prefix_store",
    "serve": "dialect engine engine_loading errors machine options",
}
LSP_SERVER_MAY_IMPORT_OF_MODEL = {"model.hub", "model.tokenizer", "model.errors"}
# Packages that only these files may import: everything else works without them.
ONLY_IN = {
    "pygls": "lsp_server/",
    "lsprotocol": "lsp_server/",
    "platformdirs": "lsp_server/",
    "typer": "lsp_server/",
    "torch": "model/",
    "safetensors": "model/",
    "tokenizers": "model/tokenizer.py",
    "aiohttp": ("lsp_server/", "model/serve.py"),
    "filelock": ("lsp_server/", "model/serve.py"),
    "gguf": "model/gguf_file.py",
    "numba": "model/compiled_step.py",
    "llvmlite": "model/machine_code.py",
    "tree_sitter": "fim/",
    "transformers": (),
    "accelerate": (),
    "bitsandbytes": "model/bits.py",
}


@dataclass(frozen=True)
class Import:
    file: str  # relative to the repository
    name: str  # dotted; of a module of ours, the module itself
    at_load: bool  # runs, or would be read by a type checker, when the module is loaded; False inside a function

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file} imports {self.name}"


def files(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if not {"data", "runs"} & set(p.relative_to(ROOT).parts))


def nodes(tree: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        yield node, at_load
        yield from nodes(node, at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


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
                names = [n if (n := f"{node.module}.{a.name}") in ours else node.module for a in node.names]
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
    assert ("model/weights.py", "model.stablelm", True) in found  # from model import stablelm, starcoder2
    assert ("model/serve.py", "model.engine", True) in found  # under TYPE_CHECKING
    assert ("model/serve.py", "model.engine_loading", False) in found  # in a method
    assert len(found) > 100


@pytest.mark.parametrize(("room", "others"), [("fim", {"model", "lsp_server"}), ("model", {"fim", "lsp_server"})])
def test_fim_and_model_know_neither_each_other_nor_the_server(room: str, others: set[str]) -> None:
    assert not (wrong := [i for i in imports(room) if i.package in others]), listed(wrong)


def test_nothing_imports_benchmarks_training_or_tests() -> None:
    assert not (wrong := [i for i in all_imports() if i.package in {"benchmarks", "training", "tests"}]), listed(wrong)


def test_fim_needs_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"fim"}
    wrong = [i for i in imports("fim") if i.package not in allowed and not i.package.startswith("tree_sitter")]
    assert not wrong, listed(wrong)


def test_the_server_sees_only_the_torch_free_part_of_model() -> None:
    wrong = [i for i in imports("lsp_server") if i.package == "model" and i.name not in LSP_SERVER_MAY_IMPORT_OF_MODEL]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    wrong = [i for i in all_imports() if i.package == package and not i.file.startswith(ONLY_IN[package])]
    assert not wrong, listed(wrong)


def test_training_loads_without_the_server_and_its_packages() -> None:
    barred = {"lsp_server", "pygls", "lsprotocol", "platformdirs", "bitsandbytes"}
    assert not (wrong := [i for i in imports("training") if i.at_load and i.package in barred]), listed(wrong)


def test_inside_model_imports_run_one_way() -> None:
    edges: dict[str, set[str]] = {Path(p).stem: set() for p in files("model")}
    for i in imports("model"):
        if i.package == "model":
            edges[Path(i.file).stem].add(i.name.removeprefix("model."))
    allowed = {module: set(names.split()) for module, names in MODEL_MAY_IMPORT.items()}
    assert edges.keys() == allowed.keys()
    assert {m: beyond for m in edges if (beyond := edges[m] - allowed[m])} == {}
    assert {m: unused for m in edges if (unused := allowed[m] - edges[m])} == {}, "the table allows more than it need"


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
        (["model", "model.hub", "model.tokenizer", "model.errors"], HEAVY | {"aiohttp"}),
        ([dotted_name(p) for r in ("fim", "lsp_server") for p in files(r) if p.stem != "__main__"], HEAVY),
        (["model.serve"], HEAVY),
        (["model.loading", "model.engine", "model.dialect", "model.serve"], HEAVY - {"torch", "numpy"}),
    ],
    ids=["model alone", "the server", "an engine that is starting", "a whole engine"],
)
def test_heavy_packages_are_loaded_only_where_they_are_used(modules: list[str], absent: set[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print(*(set(sys.modules) & {absent!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("path", [p for r in ROOMS for p in files(r)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_says_what_it_is_for_and_can_be_read_in_one_sitting(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 400
