"""What `swin-moe serve` can be told, with its limits."""

from dataclasses import dataclass, field

from launcher.serve.batcher import BatchOptions


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost; beyond a limit it is refused with a 4xx status."""

    body_bytes: int = 32 * 2**20  # of one request
    images: int = 64  # of one request
    pixels: int = 64_000_000  # of one image, by its header: nothing is decoded beyond
    body_s: float = 30.0  # for the client to send its request
    answer_s: float = 30.0  # from the request to its answer, else 503


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The server."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one, which the first line says
    batches: BatchOptions = field(default_factory=BatchOptions)
    limits: Limits = field(default_factory=Limits)
    decode_threads: int = 2
    drain_s: float = 60.0  # for the requests that were taken, after SIGTERM
