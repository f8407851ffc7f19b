"""`swin-moe bench serve`: the latency and throughput of a server by the number of clients."""

import argparse
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from launcher.bench.address import Address, is_url
from launcher.bench.client import described
from launcher.bench.images import SIDE, bench_images
from launcher.bench.load import Level, LoadOptions, measure
from launcher.bench.machine import Machine, this_machine
from launcher.bench.server import StartedServer, started
from launcher.cli.parsers.serve import BATCHING
from launcher.config.errors import ConfigError
from launcher.console.columns import aligned
from launcher.exit_codes import ExitCode

MODEL_OPTIONS = ("config", "ema", "precision", "device")
HEAD = (
    "clients",
    "requests",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "requests/s",
    "mean batch",
    "client cores",
    "errors",
)


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `bench serve`: the exit status."""
    check(args)
    bodies = bench_images(args.files, args.synthetic_size or SIDE)
    machine = this_machine()
    levels: list[Level] = []
    with interruptible():
        try:
            with closing(measured(args, bodies.bodies)) as found:
                levels += found
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            status = 128 + int(error.args[0])
        else:
            status = int(ExitCode.FINISHED if any(one.answered for one in levels) else ExitCode.USER_ERROR)
    args.answer = {
        "server": args.target,
        "machine": machine,
        "images": bodies.text,
        "levels": [level.record() for level in levels],
    }
    print(render(args.target, machine, bodies.text, levels))
    return status


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if args.requests < max(args.concurrency):
        raise ConfigError(
            f"--requests ({args.requests}) must be at least the largest --concurrency "
            f"({max(args.concurrency)}), or some clients have nothing to send"
        )
    names = [name for name in MODEL_OPTIONS if getattr(args, name)]
    names += [option.name for option in BATCHING if getattr(args, option.name) is not None]
    if is_url(args.target) and names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ConfigError(
            f"{flags}: {args.target} runs already; these are options of a MODEL that is started"
        )


def measured(args: argparse.Namespace, bodies: tuple[bytes, ...]) -> Generator[Level]:
    """Each number of clients, one after another, on a server that runs or is started for it."""
    options = LoadOptions(requests=args.requests, timeout_s=args.timeout)
    if is_url(args.target):
        address = Address.of(args.target)
        model = described(address)
        print(f"{args.target}: {model.text}", file=sys.stderr)
        options = replace(options, path=model.path)
        for concurrency in args.concurrency:
            yield measure(address, bodies, concurrency, options)
        return
    print(f"starting swin-moe serve {args.target}", file=sys.stderr, flush=True)
    with started(args.target, server_options(args)) as server:
        model = described(server.address)
        print(f"{server.address.url}: {model.text}", file=sys.stderr, flush=True)
        options = replace(options, path=model.path)
        for concurrency in args.concurrency:
            yield of_started(server, bodies, concurrency, options)


def of_started(
    server: StartedServer, bodies: tuple[bytes, ...], concurrency: int, options: LoadOptions
) -> Level:
    """What was measured; ConfigError if the server has ended meanwhile."""
    level = measure(server.address, bodies, concurrency, options)
    server.check()
    return level


def server_options(args: argparse.Namespace) -> list[str]:
    """The options of `swin-moe serve` that were given."""
    options = ["--ema"] * args.ema
    for name in ("config", "precision", "device", *(option.name for option in BATCHING)):
        if (value := getattr(args, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return options


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with their number; contexts then end what they began."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


def render(target: str, machine: Machine, images: str, levels: list[Level]) -> str:
    """The report as text for a terminal."""
    lines = [f"{target}; {machine}; {images}", *aligned([HEAD, *map(_cells, levels)], right=True)]
    details = {status: detail for level in levels for status, detail in level.details.items() if detail}
    return "\n".join([*lines, *(f"{status}: {detail}" for status, detail in details.items())])


def _cells(level: Level) -> list[str]:
    times = level.latency
    shown = [f"{value:.1f}" for value in (times.p50_ms, times.p95_ms, times.p99_ms)] if times else ["-"] * 3
    batch = "-" if level.mean_batch is None else f"{level.mean_batch:.2f}"
    errors = ", ".join(f"{number} x {status}" for status, number in level.errors.items()) or "0"
    rates = [f"{level.requests_s:.1f}", batch, f"{level.client_cores:.2f}"]
    return [str(level.concurrency), str(level.requests), *shown, *rates, errors]
