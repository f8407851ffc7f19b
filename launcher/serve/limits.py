"""An ASGI layer that bounds what the body of a request may take: bytes, and time to arrive."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

from launcher.serve.options import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LimitedBodies:
    """Lets `app` receive bodies up to the limits; it sees an HTTPException where a body goes beyond them."""

    def __init__(self, app: App, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken, began, complete = 0, asyncio.get_running_loop().time(), False

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:  # what comes then is the end of the connection, for which an answer may wait long
                return await receive()
            left = began + self.limits.body_s - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError as error:
                raise HTTPException(408, f"the request did not arrive in {self.limits.body_s:g} s") from error
            taken += len(message.get("body", b""))
            if taken > self.limits.body_bytes:
                raise HTTPException(413, f"the body is larger than {self.limits.body_bytes} bytes")
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self.app(scope, limited, send)
