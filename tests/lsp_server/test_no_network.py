"""After the install nothing goes out: the whole product runs where there is no network, and opens
no socket but those in its own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lsp_server.helpers import Home, Window, until

pytestmark = pytest.mark.slow
WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo",
                 "socket.gethostbyname"):
        with open(os.environ["WATCHED"], "a") as log:
            print(event, arguments, file=log)

sys.addaudithook(watch)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_product_runs_in_a_namespace_without_a_network(home: Home, tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    probe = subprocess.run(
        [*alone, sys.executable, "-c", reach], capture_output=True, text=True, check=False
    )
    if "unreachable" not in probe.stderr:
        pytest.skip("this system gives no namespace")
    source = tmp_path / "code.py"
    source.write_text("def add(first, second):\n    return first + \n")
    command = [sys.executable, "-m", "lsp_server", "complete", f"{source}:2:20", "--json"]
    ended = subprocess.run(
        [*alone, *command],
        env=os.environ | home.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["timings"]["generated_tokens"] > 0


@pytest.mark.asyncio
async def test_no_process_of_the_product_opens_a_socket_beyond_its_folder(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    watched = tmp_path / "watched"
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    home.environment |= {"PYTHONPATH": os.pathsep.join(paths), "WATCHED": str(watched)}
    async with Window.spawn(home) as window:
        await window.start()
        window.open("def add(first, second):\n    return first + ")
        _, items = window.ask(1, 19, invoked=True)
        await items
        await window.request("fimls/status", {})
        assert window.process is not None
        for pid in (window.process.pid, *home.engines()):
            sockets = {
                link.removeprefix("socket:[").removesuffix("]")
                for each in Path(f"/proc/{pid}/fd").iterdir()
                if (link := str(each.readlink())).startswith("socket:")
            }
            for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
                lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
                assert not sockets & {line.split()[9] for line in lines}
    await until(lambda: window.process is not None and window.process.poll() is not None)
    seen = watched.read_text().splitlines()
    kinds = {line.split()[0] for line in seen}
    assert kinds == {"socket.connect", "socket.bind"}  # the front's, and the engine's
    assert all(str(home.runtime) in line for line in seen), seen
