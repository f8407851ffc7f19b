"""The interface of a codec."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from data_shards.errors import DataError

T = TypeVar("T")


class Codec(Protocol):
    """How a member is stored. The bytes come from outside: every damage is a DataError with the reason.

    A codec may derive from it, or have its methods.
    """

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions of its files, in lower case; packing writes the first."""
        ...

    def encode(self, value: Any) -> bytes:
        """The file of a value; DataError for a value that it cannot hold."""
        ...

    def decode(self, body: bytes) -> Any:
        """The value of a file; DataError when it is damaged."""
        ...

    def check(self, body: bytes) -> None:
        """DataError when `decode` would refuse the file."""
        self.decode(body)


def reported(what: str) -> Callable[[Callable[[Any, Any], T]], Callable[[Any, Any], T]]:
    """Make every exception of a method of one argument a DataError: "`what` (the reason)"."""

    def decorate(method: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
        @wraps(method)
        def guarded(self: Any, value: Any) -> T:
            try:
                return method(self, value)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(f"{what} ({reason})") from error

        return guarded

    return decorate
