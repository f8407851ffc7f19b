"""Where a server listens. No torch."""

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

from launcher.config.errors import ConfigError

SCHEMES = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL, not as a model."""
    return "://" in text


@dataclass(frozen=True, kw_only=True)
class Address:
    """A URL of a server, and how to connect to it."""

    url: str
    scheme: str
    host: str
    port: int | None
    path: str  # in front of every path, as behind a proxy; without a slash at its end

    @classmethod
    def of(cls, url: str) -> "Address":
        """Take a URL apart.

        Raises:
            ConfigError: it cannot be a server's.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{url} is no URL: {error}") from error
        if parts.scheme not in SCHEMES or not host:
            raise ConfigError(f"{url}: a server is http://HOST:PORT or https://HOST:PORT")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(f"{url}: a server is http://HOST:PORT, without accounts, queries and fragments")
        return cls(url=url, scheme=parts.scheme, host=host, port=port, path=parts.path.rstrip("/"))

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, which is made with the first request.

        Args:
            timeout_s: of each wait for the server.
        """
        return SCHEMES[self.scheme](self.host, self.port, timeout=timeout_s)
