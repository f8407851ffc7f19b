"""Load on a server: clients that each send a request as soon as their last one is answered. No torch."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from launcher.bench.address import Address
from launcher.bench.client import CLASSIFY, Answer, Client, batches_so_far
from launcher.bench.latency import Latency
from launcher.console.counts import counted
from launcher.console.progress import progress_line

POLL_S = 0.1
Show = Callable[[int, int], None]  # of requests: done, total


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a server is loaded."""

    requests: int  # that count, at each number of clients
    timeout_s: float = 60.0  # of each wait for the server
    path: str = CLASSIFY  # of the operation


@dataclass(frozen=True, kw_only=True)
class Level:
    """What was measured with a number of clients at once."""

    concurrency: int
    requests: int
    seconds: float  # from the first request to the last answer
    latency: Latency | None  # of the requests with status 200; None where there is none
    mean_batch: float | None  # images of a pass of the model; None where /metrics does not say
    errors: dict[str, int]  # by status
    details: dict[str, str]  # the first reason of each status
    client_cores: float  # processor time of the clients, over `seconds`

    @property
    def answered(self) -> int:
        """Requests with status 200."""
        return self.latency.calls if self.latency else 0

    @property
    def requests_s(self) -> float:
        """Of these, so many a second."""
        return self.answered / self.seconds

    def record(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {**asdict(self), "answered": self.answered, "requests_s": self.requests_s}


def measure(address: Address, bodies: Sequence[bytes], concurrency: int, options: LoadOptions) -> Level:
    """Load a server with `concurrency` clients, after two requests of each that do not count.

    Args:
        address: of the server.
        bodies: the files of images, which are sent in turn.
        concurrency: clients at once.
        options: how many requests.
    """
    name = counted(concurrency, "client")
    with closing(Clients(address, bodies, concurrency, options)) as clients:
        clients.run(2 * concurrency, progress_line(f"{name}, warm-up", "requests"))
        before, cpu_s = batches_so_far(address), time.process_time()
        answers, seconds = clients.run(options.requests, progress_line(name, "requests"))
        cpu_s, after = time.process_time() - cpu_s, batches_so_far(address)
    return level(concurrency, answers, seconds, mean_batch(before, after), cpu_s)


def level(
    concurrency: int, answers: Sequence[Answer], seconds: float, batch: float | None, cpu_s: float
) -> Level:
    """What follows from the answers to all requests."""
    good = [answer.seconds for answer in answers if answer.is_good]
    bad = [answer for answer in answers if not answer.is_good]
    details = {answer.status: answer.detail for answer in reversed(bad)}
    errors = dict(sorted(Counter(answer.status for answer in bad).items()))
    return Level(
        concurrency=concurrency,
        requests=len(answers),
        seconds=seconds,
        latency=Latency.of(good) if good else None,
        mean_batch=batch,
        errors=errors,
        details={status: details[status] for status in errors},
        client_cores=cpu_s / seconds,
    )


def mean_batch(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """Images of a pass, from (images, passes) before and after; None where they are not known."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


class Clients:
    """Clients of one server, each with a thread and a connection that stays open.

    Args:
        address: of the server.
        bodies: the files of images.
        concurrency: the number of clients.
        options: the operation, and how long each wait may take.
    """

    def __init__(
        self, address: Address, bodies: Sequence[bytes], concurrency: int, options: LoadOptions
    ) -> None:
        self._bodies = bodies
        self._clients = [Client(address, options.path, options.timeout_s) for _ in range(concurrency)]
        self._stop = threading.Event()

    def run(self, requests: int, show: Show) -> tuple[list[Answer], float]:
        """Send requests: their answers, and the seconds from the first request to the last answer.

        An exception in this thread, such as KeyboardInterrupt, stops each client after its request.
        """
        numbers, answers = iter(range(requests)), list[Answer]()
        ready = threading.Barrier(len(self._clients) + 1)
        threads = [
            threading.Thread(target=self._send, args=(client, numbers, answers, ready), daemon=True)
            for client in self._clients
        ]
        try:
            for thread in threads:
                thread.start()
            ready.wait()
            began = time.perf_counter()
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_S)
                    if (done := len(answers)) < requests:
                        show(done, requests)
            seconds = time.perf_counter() - began
        except BaseException:
            self._stop.set()
            ready.abort()
            raise
        show(requests, requests)
        return answers, seconds

    def _send(
        self, client: Client, numbers: Iterator[int], answers: list[Answer], ready: threading.Barrier
    ) -> None:
        """Send the request of each number that no other client has taken."""
        client.connect()
        with suppress(threading.BrokenBarrierError):
            ready.wait()
            for number in numbers:
                if self._stop.is_set():
                    return
                answers.append(client.send(self._bodies[number % len(self._bodies)]))

    def close(self) -> None:
        """End all connections."""
        for client in self._clients:
            client.close()
