"""The arguments of `swin-moe bench serve`."""

import argparse
import math

from launcher.cli.parsers.bench_images import add_images
from launcher.cli.parsers.serve import BATCHING
from launcher.console.arguments import CommandParser, add_json, add_model_options, positive, positives

MOST = 512  # clients, beyond which this process is what would be measured
EPILOG = """\
examples:
  swin-moe bench serve runs/demo_cpu --files data/fashion-mnist/val
  swin-moe bench serve runs/demo_cpu/artifacts/onnx --concurrency 1,8,64 --requests 2000 --max-batch 16
  swin-moe bench serve http://127.0.0.1:8000 --concurrency 32 --json

A MODEL is served by a process of its own at a free port of this machine, which ends with the bench, whatever
ends that. Each client has a connection that stays open, and sends the file of an image as soon as its last
request is answered. Times and requests/s are of requests with status 200; one that fails is counted by its
status and not repeated. The mean batch is that of the server's passes, from /metrics, over all its clients.
The exit status is 2 if no request was answered.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `bench serve`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.bench_serve:run")
    add = parser.add_argument
    add("target", metavar="URL | MODEL", help="a server that runs; or a model, as for swin-moe serve")
    add(
        "--concurrency",
        type=clients,
        default=(1, 8, 64),
        metavar="C,C...",
        help="clients at once; several numbers are measured one after another (default 1,8,64)",
    )
    add("--requests", type=positive, default=500, metavar="N", help="for each (default %(default)s)")
    add(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="of each wait for an answer (default %(default)s)",
    )
    add_images(parser)
    add_json(parser)
    server = parser.add_argument_group("of a MODEL", "as swin-moe serve takes them")
    add_model_options(server)
    for option in BATCHING:
        option.add(server, passed_on=True)


def clients(text: str) -> tuple[int, ...]:
    """Different numbers of clients, with commas between them.

    Raises:
        ArgumentTypeError: it is something else.
    """
    numbers = positives(text)
    if max(numbers) > MOST:
        raise argparse.ArgumentTypeError(
            f"must be at most {MOST} clients (got {text!r}): start several benches"
        )
    return numbers


def seconds(text: str) -> float:
    """A finite time above 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds above 0 (got {text!r})")
    return value
