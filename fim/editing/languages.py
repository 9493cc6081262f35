"""The compiled grammars of languages: where each is found, and its names for the nodes that are
definitions."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Grammar:
    """The words that one compiled grammar has for things. `closures` are functions only when they
    have a block."""

    module: str
    functions: frozenset[str]
    closures: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    language: str = "language"
    closer: str = "}"


def _grammar(
    module: str,
    functions: str,
    closures: str = "",
    types: str = "",
    language: str = "language",
    closer: str = "}",
) -> Grammar:
    sets = [frozenset(names.split()) for names in (functions, closures, types)]
    return Grammar(f"tree_sitter_{module}", sets[0], sets[1], sets[2], language, closer)


_JAVASCRIPT = _grammar(
    "javascript",
    "function_declaration generator_function_declaration method_definition",
    "function_expression generator_function arrow_function",
    "class_declaration",
)
_TYPESCRIPT = replace(
    _JAVASCRIPT,
    module="tree_sitter_typescript",
    functions=_JAVASCRIPT.functions
    | {"function_signature", "method_signature", "abstract_method_signature"},
    types=_JAVASCRIPT.types
    | {
        "abstract_class_declaration",
        "interface_declaration",
        "enum_declaration",
        "type_alias_declaration",
    },
    language="language_typescript",
)
_C = _grammar("c", "function_definition", types="struct_specifier enum_specifier union_specifier")
PHP = _grammar(
    "php",
    "function_definition method_declaration",
    "anonymous_function",
    "class_declaration interface_declaration trait_declaration enum_declaration",
    language="language_php",
)

GRAMMARS = {  # by the protocol's names of languages
    "python": _grammar("python", "function_definition", types="class_definition", closer=""),
    "javascript": _JAVASCRIPT,
    "javascriptreact": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "typescriptreact": replace(_TYPESCRIPT, language="language_tsx"),
    "go": _grammar(
        "go",
        "function_declaration method_declaration method_elem",
        "func_literal",
        "type_declaration",
    ),
    "rust": _grammar(
        "rust",
        "function_item function_signature_item",
        "closure_expression",
        "struct_item enum_item union_item trait_item macro_definition",
    ),
    "c": _C,
    "cpp": replace(
        _C,
        module="tree_sitter_cpp",
        closures=frozenset({"lambda_expression"}),
        types=_C.types | {"class_specifier"},
    ),
    "java": _grammar(
        "java",
        "method_declaration constructor_declaration compact_constructor_declaration",
        "lambda_expression",
        "class_declaration interface_declaration enum_declaration record_declaration "
        "annotation_type_declaration",
    ),
    "lua": _grammar("lua", "function_declaration", "function_definition", closer="end"),
    "ruby": _grammar("ruby", "method singleton_method", types="class module", closer="end"),
    "shellscript": _grammar("bash", "function_definition"),
    "csharp": _grammar(
        "c_sharp",
        "method_declaration constructor_declaration destructor_declaration operator_declaration "
        "conversion_operator_declaration local_function_statement",
        "accessor_declaration lambda_expression anonymous_method_expression",
        "class_declaration struct_declaration interface_declaration enum_declaration "
        "record_declaration "
        "property_declaration",
    ),
    "php": PHP,
}
