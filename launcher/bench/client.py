"""Requests to a server of `swin-moe serve`, over connections that stay open. No torch."""

import http.client
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.bench.address import Address
from launcher.config.errors import ConfigError

NO_ANSWER = "no answer"  # the status of a request whose connection broke or timed out
CLASSIFY = "/v1/classify"  # of servers that do not say what they answer
DETAIL = 200  # characters of a reason that are kept
TIMEOUT_S = 10.0  # of the requests that are not measured


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one request."""

    status: str  # such as 200, or NO_ANSWER
    seconds: float
    detail: str = ""  # of an error

    @property
    def is_good(self) -> bool:
        """Whether the image has an answer."""
        return self.status == "200"


class Client:
    """One connection, for one thread; a request that finds it broken opens it anew.

    Args:
        address: of the server.
        path: of the operation on images.
        timeout_s: of each wait for it.
    """

    def __init__(self, address: Address, path: str, timeout_s: float) -> None:
        self._path = f"{address.path}{path}"
        self._connection = address.connect(timeout_s)

    def connect(self) -> None:
        """Open the connection ahead of the first request, which else does it, and says what is wrong."""
        with suppress(OSError):
            if self._connection.sock is None:
                self._connection.connect()

    def send(self, body: bytes) -> Answer:
        """Send the file of an image, and wait for the answer."""
        began = time.perf_counter()
        try:
            self._connection.request("POST", self._path, body, {"content-type": "application/octet-stream"})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            detail = str(error) or type(error).__name__
            return Answer(status=NO_ANSWER, seconds=time.perf_counter() - began, detail=detail[:DETAIL])
        seconds = time.perf_counter() - began
        detail = "" if response.status == 200 else _detail(content)
        return Answer(status=str(response.status), seconds=seconds, detail=detail)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _detail(content: bytes) -> str:
    """The reason in the body of an error; empty where it has none."""
    try:
        return str(json.loads(content)["detail"])[:DETAIL]
    except (ValueError, LookupError, TypeError):
        return ""


class Described(NamedTuple):
    """What a server says of its model."""

    text: str  # for a person
    path: str  # of its first operation on images


def described(address: Address) -> Described:
    """What a server says of its model.

    Raises:
        ConfigError: there is no server, or one of another kind.
    """
    try:
        status, content = _get(address, "/v1/model")
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: the name of a host
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"{address.url}: no answer: {reason}; start one with swin-moe serve, or name a MODEL"
        ) from error
    try:
        answer: Any = json.loads(content)
        return Described(str(answer["text"]), str([*answer.get("paths", ()), CLASSIFY][0]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{address.url} is no server of swin-moe: it answers GET /v1/model with status {status}, and "
            "without a description of a model"
        ) from error


def batches_so_far(address: Address) -> tuple[float, float] | None:
    """Images and passes of the model since the server's start, from /metrics; None where it has none."""
    with suppress(OSError, http.client.HTTPException, ValueError, LookupError):
        _, content = _get(address, "/metrics")
        words = (line.split() for line in content.decode().splitlines())
        figures = {pair[0]: pair[1] for pair in words if len(pair) == 2}
        return float(figures["swin_moe_batch_images_sum"]), float(figures["swin_moe_batch_images_count"])
    return None


def _get(address: Address, path: str) -> tuple[int, bytes]:
    connection = address.connect(TIMEOUT_S)
    try:
        connection.request("GET", f"{address.path}{path}")
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
