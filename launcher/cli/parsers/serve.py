"""The arguments of `swin-moe serve`."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

from launcher.console.arguments import CommandParser, add_model, positive

EPILOG = """\
examples:
  swin-moe serve runs/demo_cpu                                 then open http://127.0.0.1:8000
  swin-moe serve runs/demo_cpu/artifacts/onnx --port 9000 --max-batch 16 --max-wait-ms 10
  curl --data-binary @cat.jpg -H 'content-type: image/jpeg' http://127.0.0.1:8000/v1/classify
  curl -F file=@cat.jpg -F file=@dog.jpg 'http://127.0.0.1:8000/v1/classify?top=3'
  swin-moe serve runs/recipes/segmentation                     the class of each pixel, at /v1/segment

POST /v1/classify and /v1/embed, and of a segmentation run /v1/segment, take JSON with base64, a form with
files, or one file as the body. A pass of a segmentation run has one image, whatever --max-batch is. There are
GET /healthz, /metrics (Prometheus) and /openapi.json, and a page at /, which needs no internet. SIGTERM and
Ctrl-C stop the server when it has answered what it has taken. docs/inference.md has every answer, limit and
status. Needs `pip install 'swin-moe[serve]'`.
"""


def milliseconds(text: str) -> float:
    """A time of at most a minute.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"must be milliseconds from 0 to 60000 (got {text!r})")
    return value


@dataclass(frozen=True)
class ServerOption:
    """An option with a number, which `bench serve` passes on to the server that it starts."""

    name: str  # of the attribute
    type: Callable[[str], float]
    default: float | None
    text: str
    metavar: str = "N"
    otherwise: str = "torch's"  # what an option without a default means

    def add(self, parser: argparse._ActionsContainer, *, passed_on: bool = False) -> None:
        """Add it to a parser; what is passed on is None unless it was given."""
        default = f"default: {self.otherwise if self.default is None else format(self.default, 'g')}"
        parser.add_argument(
            f"--{self.name.replace('_', '-')}",
            type=self.type,
            default=None if passed_on else self.default,
            metavar=self.metavar,
            help=f"{self.text}; {default}",
        )


BATCHING = (
    ServerOption("max_batch", positive, 32, "images of a pass"),
    ServerOption("max_wait_ms", milliseconds, 5.0, "that a pass waits for further images", "MS"),
    ServerOption("workers", positive, 1, "passes at the same time"),
    ServerOption("threads", positive, None, "of the processor, for each pass"),
    ServerOption("decode_threads", positive, 2, "that decode images"),
    ServerOption(
        "max_queue",
        positive,
        None,
        "images that are being answered, beyond which the status is 429",
        otherwise="256; for class maps 32",
    ),
)


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `serve`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.serve:run")
    add = parser.add_argument
    add_model(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default %(default)s)")
    add("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    for option in BATCHING:
        option.add(parser)
    add("--max-body-mib", type=positive, default=32, help="of a request (default %(default)s)")
    add("--max-pixels", type=positive, help="of an image (default: 64000000; for class maps 16000000)")
    add("--max-images", type=positive, help="of a request (default: 64; for class maps 16)")
