"""The table of languages: the facts about each that targets and definitions need.

A new language is one entry in LANGUAGES.
"""

from dataclasses import dataclass, replace


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


@dataclass(frozen=True, slots=True)
class Language:
    """The facts about one language. The defaults hold for a language without an entry."""

    grammar: str = ""  # the package of its grammar for tree-sitter; "" for none
    loader: str = "language"  # the package's function that returns the grammar
    loader_without_tags: str = ""  # the one for a text without `<?`, where it is another

    # the grammar's types of nodes that are definitions; closures are those only with a block
    functions: frozenset[str] = frozenset()
    closures: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()

    indented: bool = False  # whether indentation closes a body, and docstrings document it
    closer: str = "}"  # of a body: "}" or "end"; "" where it is indented
    separated: bool = False  # whether `;` stands between a body and its closer
    step: str = "    "  # one step of indentation, where the text shows none
    line_comment: str = "//"

    doc_marks: tuple[str, ...] = ()  # of a comment that documents; a new one gets the first
    block_documents: bool = False  # whether a comment that begins with a mere `/*` documents, too

    prose: bool = False  # whether it has no definitions, whatever its lines look like


_PROSE = Language(prose=True)
_JAVASCRIPT = Language(
    "tree_sitter_javascript",
    functions=_words("function_declaration generator_function_declaration method_definition"),
    closures=_words("function_expression generator_function arrow_function"),
    types=_words("class_declaration"),
    step="  ",
    doc_marks=("/**",),
)
_TYPESCRIPT = replace(
    _JAVASCRIPT,
    grammar="tree_sitter_typescript",
    loader="language_typescript",
    functions=_JAVASCRIPT.functions
    | _words("function_signature method_signature abstract_method_signature"),
    types=_JAVASCRIPT.types
    | _words("abstract_class_declaration interface_declaration enum_declaration")
    | _words("type_alias_declaration"),
)
_C = Language(
    "tree_sitter_c",
    functions=_words("function_definition"),
    types=_words("struct_specifier enum_specifier union_specifier"),
    doc_marks=("/**", "///"),
    block_documents=True,
)

LANGUAGES = {  # by the protocol's names
    "python": Language(
        "tree_sitter_python",
        functions=_words("function_definition"),
        types=_words("class_definition"),
        indented=True,
        closer="",
        line_comment="#",
    ),
    "javascript": _JAVASCRIPT,
    "javascriptreact": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "typescriptreact": replace(_TYPESCRIPT, loader="language_tsx"),
    "go": Language(
        "tree_sitter_go",
        functions=_words("function_declaration method_declaration method_elem"),
        closures=_words("func_literal"),
        types=_words("type_declaration"),
        step="\t",
        doc_marks=("//",),
    ),
    "rust": Language(
        "tree_sitter_rust",
        functions=_words("function_item function_signature_item"),
        closures=_words("closure_expression"),
        types=_words("struct_item enum_item union_item trait_item macro_definition"),
        doc_marks=("///",),
    ),
    "c": _C,
    "cpp": replace(
        _C,
        grammar="tree_sitter_cpp",
        closures=_words("lambda_expression"),
        types=_C.types | _words("class_specifier"),
    ),
    "java": Language(
        "tree_sitter_java",
        functions=_words("method_declaration constructor_declaration")
        | _words("compact_constructor_declaration"),
        closures=_words("lambda_expression"),
        types=_words("class_declaration interface_declaration enum_declaration")
        | _words("record_declaration annotation_type_declaration"),
        doc_marks=("/**",),
    ),
    "lua": Language(
        "tree_sitter_lua",
        functions=_words("function_declaration"),
        closures=_words("function_definition"),
        closer="end",
        step="  ",
        line_comment="--",
        doc_marks=("---", "--"),
    ),
    "ruby": Language(
        "tree_sitter_ruby",
        functions=_words("method singleton_method"),
        types=_words("class module"),
        closer="end",
        separated=True,
        step="  ",
        line_comment="#",
        doc_marks=("#",),
    ),
    "shellscript": Language(
        "tree_sitter_bash",
        functions=_words("function_definition"),
        separated=True,
        step="  ",
        line_comment="#",
        doc_marks=("#",),
    ),
    "csharp": Language(
        "tree_sitter_c_sharp",
        functions=_words("method_declaration constructor_declaration destructor_declaration")
        | _words("operator_declaration conversion_operator_declaration")
        | _words("local_function_statement"),
        closures=_words("accessor_declaration lambda_expression anonymous_method_expression"),
        types=_words("class_declaration struct_declaration interface_declaration enum_declaration")
        | _words("record_declaration property_declaration"),
        doc_marks=("/**", "///"),
    ),
    "php": Language(
        "tree_sitter_php",
        loader="language_php",
        loader_without_tags="language_php_only",
        functions=_words("function_definition method_declaration"),
        closures=_words("anonymous_function"),
        types=_words("class_declaration interface_declaration trait_declaration enum_declaration"),
        doc_marks=("/**",),
    ),
    "julia": Language(closer="end"),
    "crystal": Language(closer="end"),
    "": _PROSE,
    **dict.fromkeys(
        "markdown plaintext text latex tex bibtex restructuredtext asciidoc git-commit git-rebase "
        "diff log json jsonc json5 jsonl yaml toml ini properties dockercompose xml xsl csv tsv "
        "css scss sass less".split(),
        _PROSE,
    ),
}
