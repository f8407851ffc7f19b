"""The process of a server: it says where it listens; on SIGTERM it answers what it has taken and ends."""

import signal
import socket

import uvicorn

from launcher.config.load import ConfigError
from launcher.serve.app import Interface, create_app
from launcher.serve.options import ServeOptions


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before a model is loaded.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host ({host}), --port ({port}) cannot be used: {error}; --port 0 takes a free one"
        ) from error
    return listening


def serve(interface: Interface, options: ServeOptions, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were taken are answered first.

    Args:
        interface: of the model to serve.
        options: of the server.
        listening: of `listen`.
    """
    config = uvicorn.Config(
        create_app(interface, options),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=round(options.drain_s),
        timeout_keep_alive=75,  # clients keep their connections
        http="h11",  # httptools, which uvicorn prefers where it is installed, has no limit of headers
        h11_max_incomplete_event_size=64 * 1024,  # of the headers
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        """Handle a signal before uvicorn's handlers are there, and when it raises it again at its end."""
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    host, port = listening.getsockname()[:2]
    print(f"serving {interface.model.name} on http://{_in_url(host)}:{port}", flush=True)
    server.run(sockets=[listening])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
