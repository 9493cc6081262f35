"""What is shown of a file, in several languages."""

from __future__ import annotations

import pytest

from fim.project import parts_of

CASES = [
    (
        "python",
        "LIMIT = 3\nclass A(B):\n    x: int = 1\n    @property\n    def f(\n        self, a: int"
        "\n    ) -> int:\n        return a\n\nasync def g():\n    def inner():\n        pass\n",
        [
            "LIMIT = 3",
            "class A(B):\n    x: int = 1",
            "    def f(self, a: int) -> int: ...",
            "async def g(): ...",
        ],
    ),
    (
        "typescript",
        "export class A {\n  private f(a: number): string {\n    return ''\n  }\n}\n"
        "export interface P {\n  name: string\n  age: number\n}\nfunction g(): void {}\n",
        [
            "export class A",
            "  private f(a: number): string { ... }",
            "export interface P {\n  name: string\n  age: number\n}",
            "function g(): void { ... }",
        ],
    ),
    (
        "go",
        "type P struct {\n\tName string\n}\n\nfunc (p *P) Greet(who string) string {\n"
        "\treturn who\n}\n",
        ["type P struct {\n\tName string\n}", "func (p *P) Greet(who string) string { ... }"],
    ),
    (
        "rust",
        "pub struct P {\n    pub name: String,\n}\nimpl P {\n    pub fn new(n: &str) -> P {\n"
        "        P { name: n.into() }\n    }\n}\n",
        ["pub struct P {\n    pub name: String,\n}", "    pub fn new(n: &str) -> P { ... }"],
    ),
    (
        "java",
        "public class A {\n    private int x;\n    public int f(int a) {\n        return a;\n"
        "    }\n}\n",
        ["public class A", "    public int f(int a) { ... }"],
    ),
    (
        "cpp",
        "namespace n {\nstruct V {\n  int x;\n};\nint f(const V& v) {\n  return v.x;\n}\n}\n",
        ["struct V {\n  int x;\n}", "int f(const V& v) { ... }"],
    ),
    ("plaintext", "one\ntwo\n", ["one\ntwo\n"]),
    ("python", "", []),
]


@pytest.mark.parametrize(("language", "text", "shown"), CASES)
def test_parts(language: str, text: str, shown: list[str]) -> None:
    parts = parts_of(text, "a/file", language)
    for part, wanted in zip(parts, shown, strict=True):
        assert part.text.startswith(wanted), part.text
        assert 0 <= part.start < part.end <= len(text)
