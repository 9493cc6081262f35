"""Latest wins, and nothing that is ended goes on."""

import asyncio

import pytest

from lsp_server.scheduler import Scheduler


class Work:
    """A piece of work that goes on until it is told its result."""

    def __init__(self) -> None:
        self.begun = self.cancelled = False
        self._result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        self.begun = True
        try:
            return await self._result
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def finish(self, result: str) -> None:
        self._result.set_result(result)

    def fail(self, error: Exception) -> None:
        self._result.set_exception(error)


async def begin(scheduler: Scheduler, key: str, work: Work) -> asyncio.Future[str | None]:
    answer = scheduler.latest(key, work.run())
    while not work.begun:
        await asyncio.sleep(0)
    return answer


@pytest.mark.asyncio
async def test_work_that_nothing_disturbs_gives_its_result() -> None:
    work = Work()
    answer = await begin(Scheduler(), "a", work)
    work.finish("done")
    assert await answer == "done"


@pytest.mark.asyncio
async def test_newer_work_for_a_key_ends_the_older() -> None:
    scheduler, works = Scheduler(), [Work(), Work(), Work()]
    answers = [await begin(scheduler, "a", work) for work in works]
    works[-1].finish("newest")
    assert [await answer for answer in answers] == [None, None, "newest"]
    assert [work.cancelled for work in works] == [True, True, False]


@pytest.mark.asyncio
async def test_older_work_that_has_not_begun_never_does() -> None:
    scheduler, older, newer = Scheduler(), Work(), Work()
    answers = [scheduler.latest("a", work.run()) for work in (older, newer)]
    newer.finish("newer")
    assert [await answer for answer in answers] == [None, "newer"]
    assert not older.begun


@pytest.mark.asyncio
async def test_keys_do_not_disturb_each_other() -> None:
    scheduler, first, second = Scheduler(), Work(), Work()
    answers = [await begin(scheduler, "a", first), await begin(scheduler, "b", second)]
    second.finish("b")
    first.finish("a")
    assert [await answer for answer in answers] == ["a", "b"]


@pytest.mark.asyncio
async def test_cancelling_the_caller_cancels_the_work() -> None:
    work = Work()
    answer = await begin(Scheduler(), "a", work)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    while not work.cancelled:
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_caller_that_is_cancelled_late_leaves_newer_work_alone() -> None:
    scheduler, older, newer = Scheduler(), Work(), Work()
    stale, answer = await begin(scheduler, "a", older), await begin(scheduler, "a", newer)
    stale.cancel()
    await asyncio.wait({stale})
    newer.finish("newer")
    assert await answer == "newer"


@pytest.mark.asyncio
async def test_dropped_work_answers_nothing() -> None:
    scheduler, work = Scheduler(), Work()
    answer = await begin(scheduler, "a", work)
    scheduler.close("b")  # nothing runs there, which is no error
    scheduler.close("a")
    assert await answer is None
    assert work.cancelled


@pytest.mark.asyncio
async def test_closing_ends_all_work_and_waits_for_its_end() -> None:
    scheduler, works = Scheduler(), [Work(), Work()]
    answers = [await begin(scheduler, key, work) for key, work in zip("ab", works, strict=True)]
    await scheduler.close_all()
    assert [work.cancelled for work in works] == [True, True]
    assert [await answer for answer in answers] == [None, None]


@pytest.mark.asyncio
async def test_an_exception_reaches_the_caller_and_spares_later_work() -> None:
    scheduler, work, later = Scheduler(), Work(), Work()
    answer = await begin(scheduler, "a", work)
    work.fail(LookupError("of the work"))
    with pytest.raises(LookupError, match="of the work"):
        await answer
    answer = await begin(scheduler, "a", later)
    later.finish("later")
    assert await answer == "later"
