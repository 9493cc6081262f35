import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim.editing.languages import LANGUAGES
from fim.editing.targets import KINDS, Kind, Target, target_at, targets_at


def at(marked: str, language: str, kind: Kind) -> tuple[str, Target | None]:
    """The text without its marks, and its target between the two marks, or at the one."""
    before, *more = marked.split("▮")
    text = before + "".join(more)
    return text, target_at(text, language, len(before), len(before + "".join(more[:-1])), kind)


def check(language: str, marked: str, expected: str | None, kind: Kind) -> None:
    """The text with ⟦lead‸tail⟧ in place of what is replaced."""
    text, found = at(marked, language, kind)
    shown = found and f"{text[: found.start]}⟦{found.lead}‸{found.tail}⟧{text[found.end :]}"
    assert shown == expected


BODY = [
    (
        "python",
        "def f(x):\n    a▮\n    return a\n\ndef g(): pass\n",
        "def f(x):\n    ⟦‸⟧\n\ndef g(): pass\n",
    ),
    ("python", "def f(x):▮", "def f(x):⟦\n    ‸⟧"),
    ("python", "def f(x):\n    ▮\n\ny = 1\n", "def f(x):⟦\n    ‸⟧\n\ny = 1\n"),
    ("python", "def f(x):▮\n\ny = 1\n", "def f(x):⟦\n    ‸⟧\n\ny = 1\n"),
    ("python", "@d▮(1)\ndef f(x):\n    pass\n", "@d(1)\ndef f(x):\n    ⟦‸⟧\n"),
    ("python", "def f(): ▮pass\n", "def f():⟦\n    ‸⟧\n"),
    ("python", "def f(): return▮ 1\n", "def f(): ⟦‸⟧\n"),
    ("python", "def f():  # c\n    ...▮\n", "def f():  # c\n    ⟦‸⟧\n"),
    ("python", 'def f():\n    """Doc."""\n    ret▮urn 1\n', 'def f():\n    """Doc."""\n    ⟦‸⟧\n'),
    (
        "python",
        'def f():\n    """Doc.\n\n    More.\n    """▮\n',
        'def f():\n    """Doc.\n\n    More.\n    """⟦\n    ‸⟧\n',
    ),
    ("python", 'def f(): """Doc."""▮\nx\n', 'def f():⟦\n    """Doc."""\n    ‸⟧\nx\n'),
    ("python", 'def f():\n    "a" + b▮\n', "def f():\n    ⟦‸⟧\n"),
    (
        "python",
        "class A:\n\tdef f(self):▮\n\n\tdef g(self):\n\t\treturn (1\n\n\t@x\n\tdef h(self): pass\n",
        "class A:\n\tdef f(self):⟦\n\t\t‸⟧\n\n\tdef g(self):\n\t\treturn (1\n\n\t@x\n\tdef "
        "h(self): pass\n",
    ),
    ("python", "class A:\n    x = ▮1\n    def f(self): pass\n", None),
    (
        "python",
        "def f():\n    def g():\n        return 1  # c▮\n    return g\n",
        "def f():\n    def g():\n        ⟦‸⟧\n    return g\n",
    ),
    ("python", "def f():\n    def g():\n        return 1\n    return▮ g\n", "def f():\n    ⟦‸⟧\n"),
    ("python", "def f():\n    # TODO: sum▮\n    pass\n", "def f():\n    # TODO: sum\n    ⟦‸⟧\n"),
    (
        "python",
        "def f():\n    # TODO: sum▮\n\nx = 1\n",
        "def f():\n    # TODO: sum⟦\n    ‸⟧\n\nx = 1\n",
    ),
    ("python", "def f(a,\n      b):\n    x▮\n", "def f(a,\n      b):\n    ⟦‸⟧\n"),
    ("python", "def f():\n    a\n    ▮\n\nb\n", "def f():\n    ⟦‸⟧\n    \n\nb\n"),
    ("python", "def f():\n    a\n▮\n\nb\n", None),
    ("python", "def f():\n    a\n    # end▮\nb\n", "def f():\n    ⟦‸⟧\nb\n"),
    (
        "python",
        "async def f():\r\n    a▮\r\n    b\r\n\r\nc\r\n",
        "async def f():\r\n    ⟦‸⟧\r\n\r\nc\r\n",
    ),
    ("python", "def f():\r\n▮", "def f():⟦\r\n    ‸⟧\r\n"),
    ("python", "lambda x: ▮1\n", None),
    (
        "python",
        "class A:\n    def f(self):\n        return (1▮\n\n    def g(self):\n        return 2\n",
        "class A:\n    def f(self):\n        ⟦‸⟧\n\n    def g(self):\n        return 2\n",
    ),
    (
        "python",
        "class A:\n    def f(self):\n        return (1\n\n    def g(self):\n        return 2▮\n",
        "class A:\n    def f(self):\n        return (1\n\n    def g(self):\n        ⟦‸⟧\n",
    ),
    ("python", "def f():\n    x = '''\na\n'''▮\n    return x\ny", "def f():\n    ⟦‸⟧\ny"),
    ("python", "def naïve(ü):\n    s = '😀▮'\n    return s\n", "def naïve(ü):\n    ⟦‸⟧\n"),
    ("python", "def f():\n    if x:\n        ▮\n", "def f():\n    ⟦‸⟧\n        \n"),
    ("python", "if x:\n    def f():▮\n", "if x:\n    def f():⟦\n        ‸⟧\n"),
    ("python", "def f(▮", None),
    ("python", "def f(x)▮\n    pass\n", None),
    ("python", "def f():\n    a\n\n# top▮\n\nb\n", None),
    ("javascript", "function f(a) {\n  ▮", "function f(a) {⟦\n  ‸\n}⟧"),
    (
        "javascript",
        "class A {\n  m(a) {▮\n\n  n() { return 1 }\n}\n",
        "class A {\n  m(a) {⟦\n    ‸\n  }⟧\n\n  n() { return 1 }\n}\n",
    ),
    ("javascript", "class A {\n  m(a) {\n\n  n() { return ▮1 }\n}\n", None),
    ("javascript", "const f▮ = (x) => {\n  return x;\n};\n", "const f = (x) => {\n  ⟦‸⟧\n};\n"),
    ("javascript", "const f = x => ▮x;\n", None),
    ("javascript", "export default function () {▮}\n", "export default function () {⟦\n  ‸\n⟧}\n"),
    ("javascript", "foo(function (x) {\n\ta();▮\n});\n", "foo(function (x) {\n\t⟦‸⟧\n});\n"),
    ("javascript", "function f() {\n  a.forEach(x => x▮);\n}\n", "function f() {\n  ⟦‸⟧\n}\n"),
    ("javascript", "function f() { return ▮1; }", "function f() { ⟦‸⟧ }"),
    ("javascript", "function f() { throw new Error('x');▮ }", "function f() {⟦\n  ‸\n⟧}"),
    (
        "javascript",
        "async function f() { // c\n  // TODO: x▮\n}\n",
        "async function f() { // c\n  // TODO: x⟦\n  ‸\n⟧}\n",
    ),
    ("javascript", "class A { get x() { return ▮this.x } }", "class A { get x() { ⟦‸⟧ } }"),
    ("typescript", "interface I {\n  f▮(): void;\n}\n", None),
    (
        "typescript",
        "abstract class A {\n    abstract f▮(): void;\n    g(): void {\n        ▮\n    }\n}\n",
        None,
    ),
    (
        "typescript",
        "class A {\n    @d()▮\n    m(): void {}\n}\n",
        "class A {\n    @d()\n    m(): void {⟦\n        ‸\n    ⟧}\n}\n",
    ),
    (
        "typescriptreact",
        "const A = () => {\n  return <a>▮</a>;\n};\n",
        "const A = () => {\n  ⟦‸⟧\n};\n",
    ),
    ("go", "func f(a int) int {\n▮}\n", "func f(a int) int {⟦\n\t‸\n⟧}\n"),
    ("go", "func (a *A) F() {\n\treturn 1▮\n}\n", "func (a *A) F() {\n\t⟦‸⟧\n}\n"),
    ("go", "type I interface {\n\tF▮()\n}\n", None),
    ("rust", "fn f() -> i32 { todo!()▮ }\n", "fn f() -> i32 {⟦\n    ‸\n⟧}\n"),
    ("rust", "trait T {\n    fn f(&self);▮\n    fn g(&self) {\n    }\n}\n", None),
    (
        "rust",
        "trait T {\n    fn f(&self);\n    fn g(&self) {▮\n    }\n}\n",
        "trait T {\n    fn f(&self);\n    fn g(&self) {⟦\n        ‸\n    ⟧}\n}\n",
    ),
    ("rust", "#[test]▮\nfn f() {\n    x\n}\n", "#[test]\nfn f() {\n    ⟦‸⟧\n}\n"),
    ("c", "int f(int a)\n{\n▮}\n", "int f(int a)\n{⟦\n    ‸\n⟧}\n"),
    (
        "c",
        "int f(int a) {\n▮\n\nint g() { return 1; }\n",
        "int f(int a) {⟦\n    ‸\n}⟧\n\n\nint g() { return 1; }\n",
    ),
    ("c", "int f() { return 1;▮ }\n", "int f() { ⟦‸⟧ }\n"),
    (
        "c",
        "int f(int a,\n      int b) {\n    x;▮\n}\n",
        "int f(int a,\n      int b) {\n    ⟦‸⟧\n}\n",
    ),
    (
        "cpp",
        "template <class T>▮\nT f(T a) { return a; }\n",
        "template <class T>\nT f(T a) { ⟦‸⟧ }\n",
    ),
    ("cpp", "A::A() : x(1) {▮}\n", "A::A() : x(1) {⟦\n    ‸\n⟧}\n"),
    ("cpp", "struct A {\n  virtual int f() = 0;▮\n  ~A() = default;\n};\n", None),
    ("cpp", "auto l = [](int a) {\n    return ▮a;\n};\n", "auto l = [](int a) {\n    ⟦‸⟧\n};\n"),
    (
        "java",
        "class A {\n    @Override▮\n    public int f() {\n        return 1;\n    }\n\n    "
        "abstract int g();\n}\n",
        "class A {\n    @Override\n    public int f() {\n        ⟦‸⟧\n    }\n\n    abstract int "
        "g();\n}\n",
    ),
    ("java", "class A {\n    abstract int g();▮\n}\n", None),
    ("java", "class A {\n    A() {▮\n", "class A {\n    A() {⟦\n        ‸\n    }⟧\n"),
    ("lua", "local function f(a)▮\nend\n", "local function f(a)⟦\n  ‸\n⟧end\n"),
    ("lua", "function M:g()\n    return 1▮\nend\n", "function M:g()\n    ⟦‸⟧\nend\n"),
    ("lua", "M.x = function() return 1▮ end\n", "M.x = function() ⟦‸⟧ end\n"),
    ("lua", "local function f(a)\n  ▮\n", "local function f(a)⟦\n  ‸\nend⟧\n"),
    ("ruby", "def f(a)\n  a▮\nend\n", "def f(a)\n  ⟦‸⟧\nend\n"),
    ("ruby", "class A\n  def self.g; end▮\nend\n", "class A\n  def self.g;⟦\n    ‸\n  ⟧end\nend\n"),
    ("ruby", "def h(x) = x▮\n", "def h(x) = ⟦‸⟧\n"),
    ("ruby", "def f\n▮\n", "def f⟦\n  ‸\nend⟧\n\n"),
    ("ruby", "def f a\n  a.each do |b|\n    b▮\n  end\nend\n", "def f a\n  ⟦‸⟧\nend\n"),
    ("shellscript", "f() {\n  echo a▮\n}\n", "f() {\n  ⟦‸⟧\n}\n"),
    ("shellscript", "f() { echo ▮a; }\n", "f() { ⟦‸⟧; }\n"),
    ("shellscript", "f() {▮ :; }\n", "f() {⟦\n  ‸\n⟧}\n"),
    ("shellscript", "f() (\n  ls▮\n)\n", "f() (\n  ⟦‸⟧\n)\n"),
    (
        "csharp",
        "class A\n{\n    int F() => 1▮;\n    int G()\n    {\n    }\n}\n",
        "class A\n{\n    int F() => ⟦‸⟧;\n    int G()\n    {\n    }\n}\n",
    ),
    (
        "csharp",
        "class A\n{\n    int G()▮\n    {\n    }\n}\n",
        "class A\n{\n    int G()\n    {⟦\n        ‸\n    ⟧}\n}\n",
    ),
    (
        "csharp",
        "class A\n{\n    int P { get { return ▮1; } set; }\n}\n",
        "class A\n{\n    int P { get { ⟦‸⟧ } set; }\n}\n",
    ),
    ("php", "<?php\nfunction f($a) {▮}\n", "<?php\nfunction f($a) {⟦\n    ‸\n⟧}\n"),
    ("php", "function f($a) { return 1;▮ }\n", "function f($a) { ⟦‸⟧ }\n"),
    ("php", "<?php\nabstract class A {\n    abstract function g();▮\n}\n", None),
    (
        "kotlin",
        "class A {\n    fun f(a: Int): Int {\n        if (a > 1) {\n            return▮ 1\n       "
        " }\n    }\n}\n",
        "class A {\n    fun f(a: Int): Int {\n        ⟦‸⟧\n    }\n}\n",
    ),
    ("kotlin", "fun f() {\n    ▮", "fun f() {⟦\n    ‸\n}⟧"),
    (
        "elixir",
        "defmodule A do\n  def f(x) do\n    x▮\n  end\nend\n",
        "defmodule A do\n  def f(x) do\n    ⟦‸⟧\n  end\nend\n",
    ),
    ("swift", "func f() -> Int {▮\n}\n", "func f() -> Int {⟦\n    ‸\n⟧}\n"),
    ("dart", "int f(int a)\n{\n  return 1;▮\n}\n", "int f(int a)\n{\n  ⟦‸⟧\n}\n"),
    ("markdown", "def f():\n    a▮\n", None),
    ("plaintext", "f(x) {\n  ▮\n}\n", None),
    ("kotlin", "call(\n    a▮\n)\n", None),
    ("ruby", "class A\n  def f(a)\n    ▮\nend\n", "class A\n  def f(a)⟦\n    ‸\n⟧end\n"),
    ("julia", "function f(x)\n    ▮\nend\n", "function f(x)⟦\n    ‸\n⟧end\n"),
]

DOCSTRING = [
    ("python", "def f():\n    ret▮urn 1\n", 'def f():⟦\n    """‸"""⟧\n    return 1\n'),
    ("python", "class A:\n    x = ▮1\n", 'class A:⟦\n    """‸"""⟧\n    x = 1\n'),
    (
        "python",
        'def f():\n    """Old▮."""\n    return 1\n',
        'def f():\n    ⟦"""‸"""⟧\n    return 1\n',
    ),
    ("python", "def f():\n    'Old▮.'\n    return 1\n", 'def f():\n    ⟦"""‸"""⟧\n    return 1\n'),
    (
        "python",
        'def f():\n    r"""\n    Old▮.\n\n    More.\n    """\n    return 1\n',
        'def f():\n    ⟦r"""\n    ‸\n    """⟧\n    return 1\n',
    ),
    ("python", "def f(): ▮pass\n", 'def f():⟦\n    """‸"""\n    ⟧pass\n'),
    ("python", "def f():▮", 'def f():⟦\n    """‸"""⟧'),
    ("python", "def f():  # c▮\n\ty = 1\n", 'def f():  # c⟦\n\t"""‸"""⟧\n\ty = 1\n'),
    ("python", "▮import x\n", '⟦"""‸"""\n\n⟧import x\n'),
    ("python", "#!/bin/sh\n# c\n\n▮import x\n", '#!/bin/sh\n# c\n\n⟦"""‸"""\n\n⟧import x\n'),
    ("python", "import x\n▮y = 1\n", None),
    ("python", '"""Old."""▮\nimport x\n', '⟦"""‸"""⟧\nimport x\n'),
    ("python", "▮", '⟦"""‸"""\n⟧'),
    ("python", "# c▮", '# c⟦\n"""‸"""\n⟧'),
    ("python", "class A:▮\r\n    x = 1\r\n", 'class A:⟦\r\n    """‸"""⟧\r\n    x = 1\r\n'),
    (
        "python",
        "def f():\n    # c▮\n    return 1\n",
        'def f():⟦\n    """‸"""⟧\n    # c\n    return 1\n',
    ),
    ("javascript", "function f() {▮\n}\n", "⟦/**\n * ‸\n */\n⟧function f() {\n}\n"),
    (
        "javascript",
        "/**\n * Old.\n */▮\nfunction f() {\n}\n",
        "⟦/**\n * ‸\n */⟧\nfunction f() {\n}\n",
    ),
    (
        "javascript",
        "/** Old. */\nexport const f = () => {▮\n};\n",
        "⟦/**\n * ‸\n */⟧\nexport const f = () => {\n};\n",
    ),
    (
        "javascript",
        "class A {\n  m() { ▮}\n}\n",
        "class A {\n  ⟦/**\n   * ‸\n   */\n  ⟧m() { }\n}\n",
    ),
    ("javascript", "f(function () {▮});\n", None),
    (
        "javascript",
        "/* eslint */\nfunction f() {▮}\n",
        "/* eslint */\n⟦/**\n * ‸\n */\n⟧function f() {}\n",
    ),
    (
        "typescript",
        "interface I {\n  f▮(): void;\n}\n",
        "interface I {\n  ⟦/**\n   * ‸\n   */\n  ⟧f(): void;\n}\n",
    ),
    (
        "typescript",
        "class A {\n  @d()\n  m() {▮}\n}\n",
        "class A {\n  ⟦/**\n   * ‸\n   */\n  ⟧@d()\n  m() {}\n}\n",
    ),
    (
        "java",
        "class A {\n    @Override\n    public int f() {▮\n    }\n}\n",
        "class A {\n    ⟦/**\n     * ‸\n     */\n    ⟧@Override\n    public int f() {\n    }\n}\n",
    ),
    ("java", "class A {▮\n}\n", "⟦/**\n * ‸\n */\n⟧class A {\n}\n"),
    ("c", "/* Old. */\nint f() {▮\n}\n", "⟦/**\n * ‸\n */⟧\nint f() {\n}\n"),
    (
        "cpp",
        "template <class T>\nT f() {▮\n}\n",
        "⟦/**\n * ‸\n */\n⟧template <class T>\nT f() {\n}\n",
    ),
    ("cpp", "/// Old.\n/// More.\nint f() {▮\n}\n", "⟦/// ‸⟧\nint f() {\n}\n"),
    (
        "csharp",
        "class A\n{\n    /// <summary>a</summary>\n    [Test]\n    int G()▮\n    {\n    }\n}\n",
        "class A\n{\n    ⟦/// ‸⟧\n    [Test]\n    int G()\n    {\n    }\n}\n",
    ),
    (
        "csharp",
        "class A\n{\n    int P { get { return ▮1; } }\n}\n",
        "class A\n{\n    ⟦/**\n     * ‸\n     */\n    ⟧int P { get { return 1; } }\n}\n",
    ),
    ("php", "<?php\nfunction f() {▮\n}\n", "<?php\n⟦/**\n * ‸\n */\n⟧function f() {\n}\n"),
    ("php", "<?php function f() {▮\n}\n", None),
    ("rust", "#[test]\nfn f() {▮\n}\n", "⟦/// ‸\n⟧#[test]\nfn f() {\n}\n"),
    ("rust", "/// Old▮.\n#[test]\nfn f() {\n}\n", "⟦/// ‸⟧\n#[test]\nfn f() {\n}\n"),
    ("rust", "struct A {▮\n}\n", "⟦/// ‸\n⟧struct A {\n}\n"),
    ("go", "func f() {▮\n}\n", "⟦// ‸\n⟧func f() {\n}\n"),
    (
        "go",
        "// f is old.\n//\n//go:noinline\nfunc f() {▮\n}\n",
        "⟦// ‸⟧\n//go:noinline\nfunc f() {\n}\n",
    ),
    ("go", "type A struct {\n\tx▮ int\n}\n", "⟦// ‸\n⟧type A struct {\n\tx int\n}\n"),
    ("lua", "-- Old\nlocal function f()▮\nend\n", "⟦-- ‸⟧\nlocal function f()\nend\n"),
    ("lua", "local function f()▮\nend\n", "⟦--- ‸\n⟧local function f()\nend\n"),
    ("ruby", "class A\n  def f\n  ▮end\nend\n", "class A\n  ⟦# ‸\n  ⟧def f\n  end\nend\n"),
    ("shellscript", "#!/bin/sh\nf() {▮\n}\n", "#!/bin/sh\n⟦# ‸\n⟧f() {\n}\n"),
    ("kotlin", "fun f() {\n  ▮\n}\n", None),
]

SELECTION = [
    ("python", "a\n▮    b\n▮c\n", "a\n⟦    ‸\n⟧c\n"),
    ("python", "a\n▮    b\n    c▮\n", "a\n⟦    ‸⟧\n"),
    ("python", "a\n    ▮b▮\n", "a\n    ⟦‸⟧\n"),
    ("python", "x = ▮1 + 2▮ + 3", "x = ⟦‸⟧ + 3"),
    ("python", "x =▮ 1▮\n", "x =⟦‸⟧\n"),
    ("python", "a▮▮", None),
    ("python", "a\n▮\n\n▮b\n", "a\n⟦‸\n⟧b\n"),
    ("python", "a▮\n\n▮b\n", "a⟦\n‸\n⟧b\n"),
    ("python", "a▮\n▮b\n", "a⟦\n‸\n⟧b\n"),
    ("python", "def f():▮\n    ▮", "def f():⟦\n    ‸⟧"),
    ("python", "def f():▮\n    ▮b", "def f():⟦\n    ‸\n    ⟧b"),
    ("python", "a\n▮    ▮\nb", "a\n⟦    ‸⟧\nb"),
    ("python", "x = ▮ ▮+ 1\n", "x = ⟦‸⟧+ 1\n"),
    ("python", "a\r\n▮    b\r\n▮c\r\n", "a\r\n⟦    ‸\r\n⟧c\r\n"),
    ("python", "a\n▮    b\n\n\n▮c\n", "a\n⟦    ‸\n\n\n⟧c\n"),
    ("python", "▮    ▮x", "⟦    ‸⟧x"),
    ("python", "a\r▮\nb\r▮\nc", "a\r\n⟦‸⟧\r\nc"),
]


@pytest.mark.parametrize(("language", "marked", "expected"), BODY)
def test_body(language: str, marked: str, expected: str | None) -> None:
    check(language, marked, expected, "body")


@pytest.mark.parametrize(("language", "marked", "expected"), DOCSTRING)
def test_docstring(language: str, marked: str, expected: str | None) -> None:
    check(language, marked, expected, "docstring")


@pytest.mark.parametrize(("language", "marked", "expected"), SELECTION)
def test_selection(language: str, marked: str, expected: str | None) -> None:
    check(language, marked, expected, "selection")


@pytest.mark.parametrize(
    ("language", "kind", "marked", "answer", "expected"),
    [
        # what stands in lead and tail is not written twice
        ("python", "body", "def f():▮", "\n    return 1\n", "def f():\n    return 1"),
        (
            "python",
            "body",
            "def f():\r\n    a▮\r\nb",
            "x\n    y\r\n",
            "def f():\r\n    x\r\n    y\r\nb",
        ),
        ("go", "body", "func f() {▮}\n", "return 1\n", "func f() {\n\treturn 1\n}\n"),
        ("c", "body", "int f() { return ▮1; }", "return 2; ", "int f() { return 2; }"),
        ("python", "selection", "a\n▮    b\n▮c\n", "\n    x\n    y\n", "a\n    x\n    y\nc\n"),
        ("python", "selection", "x = ▮1▮ + 2", "f(y) ", "x = f(y)  + 2"),
        # a docstring of one line, of several, and one that goes on behind its quotes
        ("python", "docstring", "def f():▮\n    a", "Do it.", 'def f():\n    """Do it."""\n    a'),
        (
            "python",
            "docstring",
            "def f():▮\n    a",
            'Do it."""\n    b',
            'def f():\n    """Do it."""\n    a',
        ),
        (
            "python",
            "docstring",
            "def f():▮\n    a",
            '"""Do it."""',
            'def f():\n    """Do it."""\n    a',
        ),
        (
            "python",
            "docstring",
            "def f():▮\n    a",
            "Do it.\n\n    Args:\n        x: y\n    ",
            'def f():\n    """Do it.\n\n    Args:\n        x: y\n    """\n    a',
        ),
        (
            "python",
            "docstring",
            "def f():▮\r\n\ta",
            "Do it.\n\nArgs:\n  x",
            'def f():\r\n\t"""Do it.\r\n\r\n\tArgs:\r\n\t  x\r\n\t"""\r\n\ta',
        ),
        ("python", "docstring", "def f():▮", 'Say "x"', 'def f():\n    """Say "x"\n    """'),
        ("python", "docstring", "def f():▮", "Say \\", 'def f():\n    """Say"""'),
        (
            "python",
            "docstring",
            "def f():\n    '▮a'\n",
            "b\nc",
            'def f():\n    """b\n    c\n    """\n',
        ),
        ("python", "docstring", "def f():\n    '''▮a'''\n", "b", "def f():\n    '''b'''\n"),
        # comments, with and without the marks written by the model
        (
            "java",
            "docstring",
            "  void f() {▮}",
            "A.\n   * B.\n   */\n  int x",
            "  /**\n   * A.\n   * B.\n   */\n  void f() {}",
        ),
        (
            "java",
            "docstring",
            "  void f() {▮}",
            "A.\n\n  B\n    c",
            "  /**\n   * A.\n   *\n   * B\n   *   c\n   */\n  void f() {}",
        ),
        ("java", "docstring", "void f() {▮}", "/**\n * A.\n */", "/**\n * A.\n */\nvoid f() {}"),
        (
            "rust",
            "docstring",
            "  fn f() {▮}",
            "A.\n  ///\n  /// B.\n  fn f()",
            "  /// A.\n  ///\n  /// B.\n  fn f() {}",
        ),
        ("rust", "docstring", "fn f() {▮}", "/// A.\nB.\n", "/// A.\n/// B.\nfn f() {}"),
        (
            "go",
            "docstring",
            "func f() {▮}\r\n",
            "f is.\n// g.\n",
            "// f is.\r\n// g.\r\nfunc f() {}\r\n",
        ),
    ],
)
def test_fit(language: str, kind: Kind, marked: str, answer: str, expected: str) -> None:
    text, found = at(marked, language, kind)
    assert found
    assert text[: found.start] + found.fit(answer) + text[found.end :] == expected


@pytest.mark.parametrize(
    ("language", "kind", "marked", "label", "extent"),
    [
        ("python", "selection", "x = ▮1▮", "the selection", "line"),
        ("python", "selection", "x = ▮(1,\n  2)▮", "the selection", "span"),
        ("python", "selection", "a▮\n\n▮b", "the gap", "span"),
        ("python", "body", "def f(): return ▮1", "the body of `f`", "line"),
        ("python", "body", "def f():\n    return ▮1", "the body of `f`", "span"),
        ("cpp", "body", "int A::f() { return ▮1; }", "the body of `A::f`", "line"),
        ("javascript", "body", "a.b = () => {▮\n}", "the body of `a.b`", "span"),
        ("javascript", "body", "g(() => {▮\n})", "the body of this function", "span"),
        ("python", "docstring", "▮", "the docstring of the module", "span"),
        ("go", "docstring", "type A struct {▮}", "the documentation of `A`", "span"),
    ],
)
def test_label_and_extent(language: str, kind: Kind, marked: str, label: str, extent: str) -> None:
    _, found = at(marked, language, kind)
    assert found
    assert (found.label, found.extent, found.max_lines == 1) == (label, extent, extent == "line")


def test_the_body_says_how_far_it_is_indented() -> None:
    def least(marked: str, kind: Kind) -> int:
        _, found = at(marked, "python", kind)
        assert found
        return found.least_columns

    assert least("class A:\n    def f(self):\n        ▮x\n", "body") == 8
    assert least("def f():\n\t▮x\n", "body") == 4
    assert least("def f():\n    ▮x▮\n", "selection") == 0


@pytest.mark.parametrize(
    ("language", "marked", "kinds"),
    [
        ("python", "def f():\n    ▮a▮\n", ["selection", "body", "docstring"]),
        ("python", "def f():\n    a▮\n", ["body", "docstring"]),
        ("python", "class A:\n    a = 1▮\n", ["docstring"]),
        ("markdown", "# a\n▮b▮\n", ["selection"]),
        ("markdown", "f() {\n  ▮b\n}\n", []),
    ],
)
def test_what_is_on_offer(language: str, marked: str, kinds: list[Kind]) -> None:
    before, *more = marked.split("▮")
    found = targets_at(
        before + "".join(more), language, len(before), len(before + "".join(more[:-1]))
    )
    assert [target.kind for target in found] == kinds


PIECES = st.sampled_from(
    [
        *(
            "def f(x): |class A: |function f(a) {|fn f() {|func f() {|int f() {|  f() {|const f = "
            "|export |@d|end"
        ).split("|"),
        *(
            "return 1;|pass|...|=> x|do|<?php |template <T>|#[a]|interface A {|abstract "
            "g();|lambda: "
            "|#!|//go:x|foo"
        ).split("|"),
        *"{ } ( ) \"\"\" ''' \" ' # // /// /** */ /* * -- --- ; = x é 😀 \\".split(),
        *["\n", "\n", "\n    ", "\n\t", "\n  ", " ", "    ", "\ud800", "\0", "\ufeff", "\u2028"],
    ]
)
TEXT = st.lists(PIECES, max_size=16).map("".join)
NAMES = st.sampled_from(
    [*(name for name in LANGUAGES if LANGUAGES[name].grammar), "kotlin", "elixir", "markdown", ""]
)


@settings(max_examples=250, deadline=None)
@given(TEXT, NAMES, st.floats(0, 1), st.floats(0, 1), TEXT, st.sampled_from(["\n", "\r\n"]))
def test_an_edit_stays_in_its_range(
    text: str, language: str, start: float, length: float, answer: str, newline: str
) -> None:
    text = text.replace("\n", newline)
    first = int(len(text) * start)
    last = first + int((len(text) - first) * length)
    for found in targets_at(text, language, first, last):
        assert 0 <= found.start <= found.end <= len(text)
        for offset in (found.start, found.end):
            assert text[offset - 1 : offset + 1] != "\r\n" or offset == 0
        new = found.fit(answer)
        assert new.startswith(found.lead)
        assert new.endswith(found.tail)
        result = text[: found.start] + new + text[found.end :]
        if "\n" in text:
            assert not re.search(r"(?<!\r)\n" if newline == "\r\n" else "\r", result)
        if found.kind == "selection":
            assert first <= found.start <= found.end <= last
        elif found.line_prefix:
            lines = new.removesuffix(found.tail).split(newline)
            assert all(
                line.strip(" \t").startswith((found.line_prefix.strip(), "/**")) for line in lines
            )


@settings(max_examples=150, deadline=None)
@given(TEXT, NAMES, st.floats(0, 1), st.sampled_from(KINDS))
def test_any_text_is_read(text: str, language: str, place: float, kind: Kind) -> None:
    offset = int(len(text) * place)
    found = target_at(text, language, offset, offset, kind)
    assert found is None or (found.kind == kind != "selection")
