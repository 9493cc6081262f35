"""Paths in URIs, as Windows and others write them. Windows' are looked at here without Windows."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest

from lsp_server.context.locations import below, path_in


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///C:/Users/a%20b/x.py", r"C:\Users\a b\x.py"),
        ("file:///c%3A/Users/J%C3%BCrgen/x.py", r"c:\Users\J\u00fcrgen\x.py"),
        ("file:///d:", "d:"),
        ("file://localhost/c:/x.py", r"c:\x.py"),
        ("file://server/share/a/x.py", r"\\server\share\a\x.py"),
        ("file:///c:/a%23b/%E6%BC%A2.py", "c:\\a#b\\\u6f22.py"),
        ("untitled:Untitled-1", None),
        ("vscode-remote://ssh/c:/x.py", None),
        ("file://[", None),
    ],
)
def test_a_path_on_windows(uri: str, path: str | None) -> None:
    """A host was no path, and its share's files had no suggestions of their folder's rules."""
    expected = None if path is None else PureWindowsPath(path.replace(r"\u00fc", "\u00fc"))
    assert path_in(uri, windows=True) == expected


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///home/a%20b/J%C3%BCrgen.py", "/home/a b/J\u00fcrgen.py"),
        ("file:///c:/x.py", "/c:/x.py"),
        ("file://localhost/x.py", "/x.py"),
        ("file://server/share/x.py", None),
    ],
)
def test_a_path_elsewhere(uri: str, path: str | None) -> None:
    assert path_in(uri, windows=False) == (None if path is None else PurePosixPath(path))


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("file:///c%3A/Work/Pkg/a.py", "file:///C:/work", "Pkg/a.py"),
        ("file://server/share/p/b/a.py", "file://SERVER/share/p", "b/a.py"),
        ("file:///d:/work/a.py", "file:///c:/work", "a.py"),
        ("file:///c:/work%20here/\u00e9/a.py", "file:///c%3A/work%20here", "\u00e9/a.py"),
    ],
)
def test_where_a_file_lies_in_a_workspace_on_windows(uri: str, folder: str, expected: str) -> None:
    """Names of drives and folders come in either case there."""
    path, above = (path_in(each, windows=True) for each in (uri, folder))
    assert path is not None and above is not None
    assert below(path, [above]) == expected
