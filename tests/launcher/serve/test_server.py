"""A server in a process of its own: many clients at once, and SIGTERM in the middle."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import httpx
import psutil
import pytest

from tests.launcher.serve.conftest import PROGRAM, ROOT
from tests.launcher.serve.known import image_of

HEADERS = {"content-type": "image/png"}


HOSTILE_HEADS = {
    "a huge header": b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 2**20 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 2**17 + b"\r\n",
    "a huge path": b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00" * 100 + b"\r\n\r\n",
    "a length that is no number": b"POST /v1/classify HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
}


def status(url: str, head: bytes) -> int:
    """The status of the answer to some bytes, which the server may give before it has read them all."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        with suppress(ConnectionError):
            connection.sendall(head)
        answer = connection.recv(64)
    return int(answer.split()[1])


async def ask(client: httpx.AsyncClient, index: int) -> int | None:
    """The answer for an image of class `index`; None where the connection was refused."""
    try:
        response = await client.post("/v1/classify?top=1", content=image_of(index), headers=HEADERS)
    except httpx.ConnectError:
        return None
    if response.status_code in (429, 503):
        return -response.status_code
    assert response.status_code == 200, response.text
    return int(response.json()["results"][0]["top"][0]["index"])


async def clients(url: str, number: int, requests: int) -> Counter[str]:
    """So many clients at once, each with its share of the requests: how answers compare with the truth."""
    counts: Counter[str] = Counter()

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(requests // number):
            index = draw.randrange(256)
            while (answer := await ask(client, index)) == -429:
                counts["busy"] += 1
                await asyncio.sleep(0.05)
            counts["refused" if answer is None else "right" if answer == index else "wrong"] += 1

    limits = httpx.Limits(max_connections=number)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client, seed) for seed in range(number)))
    return counts


def batch_mean(url: str) -> float:
    figures = {
        name: float(value)
        for name, value in (
            line.split() for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#"
        )
    }
    return figures["swin_moe_batch_images_sum"] / figures["swin_moe_batch_images_count"]


@pytest.mark.parametrize(
    ("number", "requests"),
    [(20, 400), pytest.param(200, 10_000, marks=pytest.mark.slow)],
)
def test_no_answer_is_lost_or_swapped(
    server: tuple[subprocess.Popen[str], str], number: int, requests: int
) -> None:
    process, url = server
    asyncio.run(clients(url, number, requests // 4))
    before = psutil.Process(process.pid).memory_info().rss
    counts = asyncio.run(clients(url, number, requests))
    grown = psutil.Process(process.pid).memory_info().rss - before
    print(f"{counts}, mean batch {batch_mean(url):.2f}, memory {grown / 2**20:+.1f} MiB")
    assert counts["right"] == requests
    assert counts["wrong"] == counts["refused"] == 0
    assert batch_mean(url) > 1
    assert [status(url, head) for head in HOSTILE_HEADS.values()] == [400] * len(HOSTILE_HEADS)
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert grown < 32 * 2**20


def test_sigterm_in_the_middle_answers_what_was_taken(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    counts = asyncio.run(_until_refused(url, process.pid, stop_after=50))
    assert counts["right"] >= 50
    assert counts["wrong"] == counts["lost"] == 0
    assert process.wait(120) == 0


EARLY = """
import os, signal, uvicorn
run = uvicorn.Server.run
def late(server, sockets):
    os.kill(os.getpid(), signal.SIGTERM)
    run(server, sockets)
uvicorn.Server.run = late
"""


@pytest.mark.long
def test_sigterm_before_the_server_has_started_ends_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", EARLY + PROGRAM], env=environment, timeout=300)
    assert done.returncode == 0


async def _until_refused(url: str, pid: int, stop_after: int) -> Counter[str]:
    """Clients that ask until the server takes no connection; SIGTERM comes after some answers.

    Each request has a connection of its own. One that is reset before its request was sent whole was not
    taken; any other gets its answer, or is lost.
    """
    counts: Counter[str] = Counter()
    fresh = httpx.Limits(max_keepalive_connections=0)

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        draw = random.Random(seed)
        while True:
            index = draw.randrange(256)
            try:
                answer = await ask(client, index)
            except httpx.RemoteProtocolError:
                counts["lost"] += 1
                return
            except (httpx.ReadError, httpx.WriteError):
                return
            if answer is None or answer == -503:
                return
            counts["right" if answer == index else "wrong"] += 1
            if counts["right"] == stop_after:
                os.kill(pid, signal.SIGTERM)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=fresh) as client:
        await asyncio.wait_for(asyncio.gather(*(one(client, seed) for seed in range(16))), 240)
    return counts
