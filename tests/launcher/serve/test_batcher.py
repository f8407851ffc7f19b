"""Batches form, answers reach their requests, and nothing is lost."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from launcher.serve.batcher import Batcher, BatchOptions, ClosedError, OverloadedError


def doubled(values: Sequence[int]) -> list[int]:
    return [2 * value for value in values]


async def started(batcher: Batcher[int, int]) -> Batcher[int, int]:
    batcher.start()
    return batcher


def test_answers_reach_their_requests_in_batches() -> None:
    sizes: list[int] = []

    async def run() -> None:
        batcher = await started(Batcher(doubled, BatchOptions(max_batch=8, max_queue=1000), sizes.append))
        requests = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(100)]
        answers = await asyncio.gather(*(batcher.submit(values) for values in requests))
        assert answers == [doubled(values) for values in requests]
        await batcher.close()

    asyncio.run(run())
    assert sum(sizes) == 300
    assert max(sizes) == 8
    assert len(sizes) == 38  # 37 full ones, and one of 4


def test_a_lone_image_does_not_wait_for_a_full_batch() -> None:
    async def run() -> None:
        batcher = await started(Batcher(doubled, BatchOptions(max_batch=8, max_wait_s=0.01)))
        assert await asyncio.wait_for(batcher.submit([4]), 60) == [8]
        assert await asyncio.wait_for(batcher.submit([]), 60) == []
        await batcher.close()

    asyncio.run(run())


def test_a_full_queue_refuses_a_request_whole() -> None:
    release = threading.Event()

    def slow(values: Sequence[int]) -> list[int]:
        release.wait(60)
        return doubled(values)

    async def run() -> None:
        batcher = await started(Batcher(slow, BatchOptions(max_batch=1, max_queue=3)))
        first = asyncio.create_task(batcher.submit([1]))
        while batcher.waiting or not first.get_stack():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # the worker has it
        second = asyncio.create_task(batcher.submit([2, 3]))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await batcher.submit([4, 5])
        assert batcher.waiting == 2
        release.set()
        assert (await first, await second) == ([2], [4, 6])
        await batcher.close()

    asyncio.run(run())


def test_closing_answers_what_was_taken() -> None:
    async def run() -> None:
        batcher = await started(Batcher(doubled, BatchOptions(max_batch=4, max_wait_s=0.2)))
        taken = [asyncio.create_task(batcher.submit([number])) for number in range(10)]
        await asyncio.sleep(0)
        await batcher.close()
        assert await asyncio.gather(*taken) == [[2 * number] for number in range(10)]
        with pytest.raises(ClosedError):
            await batcher.submit([1])

    asyncio.run(run())


def test_an_error_is_that_of_its_batch_alone() -> None:
    def fails(values: Sequence[int]) -> list[int]:
        if 13 in values:
            raise ValueError("unlucky")
        return doubled(values)

    async def run() -> None:
        batcher = await started(Batcher(fails, BatchOptions(max_batch=1)))
        answers = await asyncio.gather(*(batcher.submit([v]) for v in (12, 13, 14)), return_exceptions=True)
        assert answers[::2] == [[24], [28]]
        assert isinstance(answers[1], ValueError)
        await batcher.close()

    asyncio.run(run())


def test_a_client_that_went_away_costs_no_pass() -> None:
    sizes: list[int] = []

    async def run() -> None:
        batcher = await started(Batcher(doubled, BatchOptions(max_batch=8, max_wait_s=0.05), sizes.append))
        gone = asyncio.create_task(batcher.submit([1]))
        stays = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await stays == [4]
        await batcher.close()

    asyncio.run(run())
    assert sizes == [1]
