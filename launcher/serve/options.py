"""What `swin-moe serve` can be told, with its limits."""

from dataclasses import dataclass, field

from launcher.serve.batcher import BatchOptions


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much a server takes at once, which bounds its memory."""

    queue: int  # images that are being answered
    images: int  # of one request
    pixels: int  # of one image


FOR_CLASSES = Bounds(queue=256, images=64, pixels=64_000_000)  # the model sees small images
FOR_MAPS = Bounds(queue=32, images=16, pixels=16_000_000)  # a class map has the size of its image


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost; beyond a limit it is refused with a 4xx status."""

    body_bytes: int = 32 * 2**20  # of one request
    images: int = FOR_CLASSES.images  # of one request
    pixels: int = FOR_CLASSES.pixels  # of one image, by its header: nothing is decoded beyond
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
