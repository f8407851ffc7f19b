"""What /metrics says, in the format of Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from launcher.serve.limits import App, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServerTelemetry:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, max_batch: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "swin_moe_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "swin_moe_request_seconds",
            "Time to answer a request.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        sizes = [2**power for power in range(11) if 2**power < max_batch] + [max_batch]
        self.batches = Histogram(
            "swin_moe_batch_images", "Images of a pass of the model.", buckets=sizes, registry=self.registry
        )
        self.waiting = Gauge("swin_moe_waiting_images", "Images in the queue.", registry=self.registry)

    def text(self) -> bytes:
        """The figures of now."""
        return generate_latest(self.registry)


class Counted:
    """An ASGI layer that counts the requests to `app`, and their times."""

    def __init__(self, app: App, telemetry: ServerTelemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.telemetry.requests.labels(path, str(status)).inc()
            self.telemetry.seconds.labels(path).observe(time.perf_counter() - began)
