"""Emacs with fimls: Eglot's menu, a bare jsonrpc-request, the ghost text of fimls.el, and
lsp-mode."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.lsp_server.helpers import Endpoint, Home, says

pytestmark = pytest.mark.editors

EMACS = ROOT / ".editors/emacs/emacs"
LISP = ROOT / ".editors/lsp-mode"  # lsp-mode and what it needs
# Columns after these characters differ in utf-8, utf-16 and utf-32.
EMOJI = 'who = "🎉👩‍🚀 wörld"; '
PREFIX = f"{EMOJI}\nprices = [1, 2]  # €\n{EMOJI}total = "
SUFFIX = "  # 🎈 the end\nprint(total)\n"
TEXT = "sum(prices)"

# Lisp's side: opens the file with the cursor where the mark was, and prints one JSON object at the
# end.
COMMON = """
(setq make-backup-files nil create-lockfiles nil enable-local-variables nil native-comp-jit-compilation nil)
(setq native-comp-enable-subr-trampolines nil) ; the unpacked Emacs has no assembler
(setq python-indent-guess-indent-offset nil project-vc-extra-root-markers '("code.py"))
(defvar say nil)
(defun say (&rest pairs) (setq say (append say pairs)))
(defun text () (buffer-substring-no-properties (point-min) (point-max)))
(defun wait-for (what)
  (let ((end (time-add nil 60)))
    (while (not (funcall what))
      (when (time-less-p end nil) (error "Waited in vain"))
      (accept-process-output nil 0.02))))
(defun shown () (overlay-get fimls--overlay 'after-string))
(add-hook 'kill-emacs-hook (lambda () (princ (concat "\\n" (json-encode say)))))
"""
EGLOT = """
(require 'eglot)
(setq eglot-sync-connect 60 eglot-connect-timeout 60 eglot-autoshutdown nil)
(find-file (expand-file-name "code.py" FOLDER))
(search-forward "⌷") (delete-char -1)
(eglot '(python-mode) (project-current) 'CLASS (list "PYTHON" "-P" "-m" "lsp_server" "lsp"
  :initializationOptions (json-parse-string SETTINGS :object-type 'plist :false-object :json-false))
  '("python"))
(say :encoding (plist-get (eglot--capabilities (eglot-current-server)) :positionEncoding)
     :menu (and (eglot-server-capable :completionProvider) t))
(defun ask ()
  (eglot--signal-textDocument/didChange)
  (jsonrpc-request (eglot-current-server) :textDocument/inlineCompletion
                   (append (eglot--TextDocumentPositionParams) '(:context (:triggerKind 1)))))
;; A server that is not ready yet has nothing to say.
(wait-for (lambda () (< 0 (length (plist-get (ask) :items)))))
"""
LSP_MODE = """
(dolist (folder (directory-files LISP t "^[a-z]")) (add-to-list 'load-path folder))
(setq lsp-auto-guess-root t lsp-session-file (expand-file-name "session" FOLDER) lsp-enable-snippet nil)
(setq lsp-enable-suggest-server-download nil lsp-warn-no-matched-clients nil lsp-enable-file-watchers nil)
(load "lsp-mode-autoloads")
(require 'lsp-mode)
(setq lsp-client-packages nil)
(lsp-register-client
 (make-lsp-client :new-connection (lsp-stdio-connection '("PYTHON" "-P" "-m" "lsp_server" "lsp"))
                  :activation-fn (lsp-activate-on "python") :server-id 'fimls :add-on? t
                  :initialization-options (json-parse-string SETTINGS)))
(find-file (expand-file-name "code.py" FOLDER))
(search-forward "⌷") (delete-char -1)
(lsp)
(wait-for (lambda () (and (lsp-workspaces) (eq 'initialized (lsp--workspace-status (car (lsp-workspaces)))))))
(wait-for (lambda ()
  (lsp-inline-completion--parse-items
   (lsp-request "textDocument/inlineCompletion" (lsp-inline-completion--params nil)))))
"""


async def emacs(
    home: Home, document: str, lisp: str, settings: dict[str, Any], server: str = "eglot-lsp-server"
) -> Any:
    """What Lisp said at its end. document: with ⌷ where the cursor is."""
    folder = home.path / "work"
    folder.mkdir()
    (folder / "code.py").write_text(document, encoding="utf-8")
    values = {"FOLDER": str(folder), "LISP": str(LISP), "SETTINGS": json.dumps(settings)}
    for name, value in values.items():
        lisp = lisp.replace(
            name, json.dumps(value, ensure_ascii=False)
        )  # JSON's strings are Lisp's
    lisp = lisp.replace("CLASS", server).replace("PYTHON", sys.executable)
    (folder / "test.el").write_text(
        f";; -*- lexical-binding: t; coding: utf-8 -*-\n{COMMON}\n{lisp}", encoding="utf-8"
    )
    process = await asyncio.create_subprocess_exec(
        EMACS,
        "--batch",
        "-Q",
        "-L",
        ROOT / "editors/emacs",
        "-l",
        folder / "test.el",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ
        | home.environment
        | {"HOME": str(home.path), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)},
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(out.decode().splitlines()[-1])


async def with_answer(
    text: str, document: str, lisp: str, server: str = "eglot-lsp-server"
) -> tuple[Any, list[str]]:
    """Emacs with an endpoint that says this; what Lisp said, and the prompts."""
    home = Home()
    try:
        async with Endpoint(says(text)) as endpoint:
            settings = {
                "remote.url": endpoint.url,
                "remote.format": "starcoder2",
                "remote.timeout": 60,
            }
            told = await emacs(home, document, lisp, settings, server)
            return told, [
                body["prompt"] for body in endpoint.bodies if isinstance(body["prompt"], str)
            ]
    finally:
        home.close()


def is_of_here(prompts: list[str]) -> bool:
    """Whether the text was split exactly at the cursor."""
    return f"<fim_suffix>{SUFFIX}<fim_middle>{PREFIX}" in prompts[-1]


ASKS_BARE = """
(let* ((item (aref (plist-get (ask) :items) 0))
       (range (plist-get item :range))
       (start (plist-get range :start)) (end (plist-get range :end)))
  (say :start start :end end)
  ;; A position in utf-32 is a number of characters, so Lisp needs no help to find it.
  (let ((line (lambda (where) (save-excursion (goto-char (point-min)) (forward-line (plist-get where :line)) (point)))))
    (let ((from (+ (funcall line start) (plist-get start :character)))
          (to (+ (funcall line end) (plist-get end :character))))
      (delete-region from to)
      (goto-char from)
      (insert (plist-get item :insertText))))
  (say :text (text)))
"""


@pytest.mark.asyncio
async def test_a_jsonrpc_request_gets_a_completion_with_utf_32_positions() -> None:
    told, prompts = await with_answer(TEXT, f"{PREFIX}⌷{SUFFIX}", EGLOT + ASKS_BARE)
    assert told["encoding"] == "utf-32"
    assert told["start"] == {"line": 2, "character": len(EMOJI + "total = ")}
    assert told["text"] == PREFIX + TEXT + SUFFIX
    assert is_of_here(prompts)


MULTI = "def fib(n):  # 🎉\n    ⌷\n\nprint(fib(3))\n"
LINES = "a, b = 0, 1\n    while n:\n        a, b, n = b, a + b, n - 1\n    return a"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("document", "said", "expected"),
    [
        (f"{PREFIX}⌷{SUFFIX}", TEXT, PREFIX + TEXT + SUFFIX),
        (MULTI, LINES, MULTI.replace("⌷", LINES)),
        ('x = "🎉"; y = max(one⌷)\n', ", two", 'x = "🎉"; y = max(one, two)\n'),
        ('x = "🎉"; total = pri⌷\n', "ces[0]", 'x = "🎉"; total = prices[0]\n'),
    ],
    ids=["line", "lines", "bracket", "word"],
)
async def test_eglots_menu_inserts_the_suggestion(document: str, said: str, expected: str) -> None:
    told, _ = await with_answer(said, document, EGLOT + "(completion-at-point) (say :text (text))")
    assert told["menu"]
    assert told["text"] == expected


@pytest.mark.asyncio
async def test_ghost_text_is_shown_and_taken_with_tab() -> None:
    lisp = """
    (require 'fimls) (switch-to-buffer "code.py")
    (fimls-complete)
    (say :ghost (shown) :before (text))
    (execute-kbd-macro (kbd "TAB"))
    (say :text (text) :gone (null fimls--overlay) :point (point))
    """
    told, prompts = await with_answer(
        TEXT, f"{PREFIX}⌷{SUFFIX}", "(require 'fimls)" + EGLOT + lisp, "fimls-server"
    )
    assert told["menu"] is None  # a client that draws inline completions is not offered the menu
    assert told["ghost"] == TEXT
    assert told["before"] == PREFIX + SUFFIX
    assert told["text"] == PREFIX + TEXT + SUFFIX
    assert told["gone"]
    assert told["point"] == len(PREFIX + TEXT) + 1
    assert is_of_here(prompts)


@pytest.mark.asyncio
async def test_ghost_text_comes_where_typing_pauses_and_goes_with_the_next_key() -> None:
    lisp = """
    (require 'fimls) (switch-to-buffer "code.py")
    (fimls-mode 1)
    (execute-kbd-macro (kbd "SPC"))
    (fimls--ask (current-buffer) (buffer-chars-modified-tick)) ; what the idle timer does: a batch is never idle
    (say :timer (and (memq fimls--timer timer-idle-list) t))
    (wait-for (lambda () fimls--overlay))
    (say :ghost (shown))
    (execute-kbd-macro (kbd "s"))
    (say :gone (null fimls--overlay) :text (text))
    """
    told, _ = await with_answer(
        " " + TEXT, f"{EMOJI}total =⌷\n", "(require 'fimls)" + EGLOT + lisp, "fimls-server"
    )
    assert told == told | {
        "timer": True,
        "ghost": TEXT,
        "gone": True,
        "text": f"{EMOJI}total = s\n",
    }


@pytest.mark.asyncio
async def test_lsp_mode_draws_inline_completions() -> None:
    lisp = """
    (switch-to-buffer "code.py")
    (lsp-inline-completion-display)
    (say :ghost (overlay-get lsp-inline-completion--overlay 'after-string))
    (lsp-inline-completion-accept)
    (say :text (text) :mode lsp-inline-completion-mode)
    """
    told, prompts = await with_answer(TEXT, f"{PREFIX}⌷{SUFFIX}", LSP_MODE + lisp)
    assert told["ghost"].endswith(TEXT)
    assert told["text"] == PREFIX + TEXT + SUFFIX
    assert told["mode"]  # it asks by itself, too
    assert is_of_here(prompts)


@pytest.mark.asyncio
async def test_lsp_modes_menu_inserts_the_suggestion() -> None:
    # It lists even a lone candidate, to be chosen.
    lisp = """
    (switch-to-buffer "code.py")
    (completion-at-point)
    (with-selected-window (get-buffer-window "*Completions*") (first-completion) (choose-completion))
    (say :text (text))
    """
    told, _ = await with_answer(TEXT, f"{PREFIX}⌷{SUFFIX}", LSP_MODE + lisp)
    assert told["text"] == PREFIX + TEXT + SUFFIX


@pytest.mark.asyncio
async def test_eglot_chooses_a_model(talkative_folder: Path) -> None:
    lisp = """
    (jsonrpc-request (eglot-current-server) :workspace/executeCommand
                     '(:command "fimls.chooseModel" :arguments [(:name FOLDER)]))
    (say :models (jsonrpc-request (eglot-current-server) :workspace/executeCommand
                                  '(:command "fimls.listModels")))
    """.replace("FOLDER", json.dumps(str(talkative_folder)))
    home = Home()
    try:
        told = await emacs(home, f"{PREFIX}⌷{SUFFIX}", EGLOT + lisp, {})
    finally:
        home.close()
    chosen = [model["name"] for model in told["models"] if model["chosen"] is True]
    assert chosen == [str(talkative_folder)]


@pytest.mark.asyncio
async def test_with_the_bundled_model() -> None:
    document = (
        'import os\n\n\ndef home():\n    """🎉"""\n    return '
        'os.environ.get("HOME"⌷\n\n\nprint("🎈", home())\n'
    )
    home = Home()
    try:
        told = await emacs(home, document, EGLOT + "(say :before (text))" + ASKS_BARE, {})
    finally:
        home.close()
    before, after = document.split("⌷")
    assert told["encoding"] == "utf-32"
    assert told["before"] == before + after
    assert told["text"].startswith(before)
    assert told["text"].endswith(after)
    assert len(told["text"]) > len(before + after)
