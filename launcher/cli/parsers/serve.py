"""The arguments of `swin-moe serve`."""

import argparse
import math

from launcher.console.arguments import CommandParser, add_model, positive

EPILOG = """\
examples:
  swin-moe serve runs/demo_cpu                                 then open http://127.0.0.1:8000
  swin-moe serve runs/demo_cpu/artifacts/onnx --port 9000 --max-batch 16 --max-wait-ms 10
  curl --data-binary @cat.jpg -H 'content-type: image/jpeg' http://127.0.0.1:8000/v1/classify
  curl -F file=@cat.jpg -F file=@dog.jpg 'http://127.0.0.1:8000/v1/classify?top=3'

POST /v1/classify and /v1/embed take JSON with base64, a form with files, or one file as the body. There are
GET /healthz, /metrics (Prometheus) and /openapi.json, and a page at /, which needs no internet. SIGTERM and
Ctrl-C stop the server when it has answered what it has taken. docs/inference.md has every answer, limit and
status. Needs `pip install 'swin-moe[serve]'`.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `serve`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.serve:run")
    add = parser.add_argument
    add_model(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default %(default)s)")
    add("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    add("--max-batch", type=positive, default=32, help="images of a pass (default %(default)s)")
    add(
        "--max-wait-ms",
        type=_milliseconds,
        default=5.0,
        metavar="MS",
        help="that a pass waits for further images (default %(default)s)",
    )
    add("--workers", type=positive, default=1, help="passes at the same time (default %(default)s)")
    add("--threads", type=positive, help="of the processor, for each pass; default: torch's")
    add("--decode-threads", type=positive, default=2, help="that decode images (default %(default)s)")
    add(
        "--max-queue",
        type=positive,
        default=256,
        metavar="N",
        help="images that are being answered; beyond that the status is 429 (default %(default)s)",
    )
    add("--max-body-mib", type=positive, default=32, help="of a request (default %(default)s)")
    add("--max-pixels", type=positive, default=64_000_000, help="of an image (default %(default)s)")
    add("--max-images", type=positive, default=64, help="of a request (default %(default)s)")


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"must be milliseconds from 0 to 60000 (got {text!r})")
    return value
