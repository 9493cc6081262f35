"""A workspace that somebody made to harm: what prompts then hold, and that answers come."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.lsp_server.context.hostile import make
from tests.lsp_server.context.test_project import at_once, reader_in
from tests.lsp_server.played import Played
from tests.salt import leaks

__all__ = ["at_once"]  # a fixture
pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


async def test_no_canary_comes_into_a_prompt(engine: Played, tmp_path: Path) -> None:
    hostile = make(tmp_path)
    text = hostile.main.read_text()
    name = hostile.main.relative_to(hostile.root).as_posix()
    async with reader_in(hostile.root, engine, text, name) as reader:
        prompts = [await reader.prompt_with_snippets(pause_s=2.0)]
        assert "class Order7(Basket):" in prompts[0]
        assert "def add_article_7(self, number: int, amount: int = 1) -> None: ..." in prompts[0]
        for number in range(8):  # jumps
            await reader.prompt(40 * "\n" + f"order_{number * 20} = Order{number * 20}()")
            await asyncio.sleep(1.0)
            prompts.append(await reader.prompt(f"\norder_{number * 20}.add_"))
        everything = "".join(prompts) + await reader.why()
        assert len({each.partition("<fim_prefix>")[0] for each in prompts}) > 1
        assert [each for each in hostile.hidden if each in everything] == []
        assert leaks(hostile.salt.keys, everything) == []
