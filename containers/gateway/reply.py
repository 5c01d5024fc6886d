"""One answer over HTTP: let in or refused, given up when the client goes or time runs out, streamed or whole."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from containers.gateway import shapes
from containers.gateway.api import Answer, api_error
from containers.gateway.supervisor import Admission

Begin = Callable[[], Awaitable[Answer]]

CLIENT_GONE = 499
"""What proxies log for it; nobody receives it."""


class Reply(Response):
    """Begins an answer and sends it. Its status waits for the first token, so that an error before that is no 200."""

    media_type = "text/event-stream"

    def __init__(self, begin: Begin, *, stream: bool, admission: Admission, seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # nobody knows it yet
        self._begin, self._stream, self._admission, self._seconds = begin, stream, admission, seconds
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def noting(message: Message) -> None:
            self._started = True
            await send(message)

        work = asyncio.create_task(self._run(scope, receive, noting))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                scope["state"]["status"] = CLIENT_GONE
                return
            await work
        except Exception as error:
            failure = api_error(error)
            if self._started:
                await send({"type": "http.response.body", "body": shapes.event(failure.body) + shapes.DONE})
            elif failure.status != 500:
                await JSONResponse(failure.body, failure.status, failure.headers)(scope, receive, send)
            if failure.status == 500:  # a fault of our own, which the log wants to know
                raise
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.request():
            async with asyncio.timeout(self._seconds):
                answer = await self._begin()
                if not self._stream:
                    await JSONResponse(await answer.complete())(scope, receive, send)
                    return
                async with contextlib.aclosing(answer.stream()) as parts:
                    async for part in parts:
                        if not self._started:
                            headers = self.raw_headers
                            await send({"type": "http.response.start", "status": 200, "headers": headers})
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
