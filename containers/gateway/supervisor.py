"""Keeps one engine up: loads it, proves that it answers, notices that it died or hangs, and starts it again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

from containers.engines.contract import Engine, EngineError, Facts, Sampling, Token
from containers.gateway.errors import ApiError, unavailable

Log = Callable[..., None]
"""An event's name, and its fields."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""An engine that stayed up this long is given short pauses again."""
IDLE_PROBE_SECONDS = 30.0
WATCH_SECONDS = 1.0


class Supervisor:
    """The one engine, and whether it can be relied on. Everybody else reaches the engine through this."""

    def __init__(self, engine: Engine, stall_seconds: float, log: Log) -> None:
        self._engine = engine
        self._stall_seconds = stall_seconds
        self._log = log
        self._facts: Facts | None = None
        self._why_not = "the engine is loading"
        self._running = 0
        self._progress = time.monotonic()
        """When the engine last gave a token, or was last known to have nothing to do."""
        self.restarts = 0
        self.ready_seconds: float | None = None
        """From being asked to start to the first token."""

    @property
    def ready(self) -> bool:
        """Whether a token has been generated since the engine started, and none is overdue."""
        return self._facts is not None and not self._stalled

    @property
    def why_not(self) -> str:
        """What keeps it from being ready."""
        return "the engine makes no progress" if self._stalled else self._why_not

    @property
    def facts(self) -> Facts:
        """What is known of the running engine; ApiError while none runs."""
        if self._facts is None:
            raise unavailable(self._why_not)
        return self._facts

    @property
    def engine(self) -> Engine:
        """The running engine; ApiError while none runs."""
        if self._facts is None:
            raise unavailable(self._why_not)
        return self._engine

    @property
    def _stalled(self) -> bool:
        return self._running > 0 and time.monotonic() - self._progress > self._stall_seconds

    async def run(self) -> None:
        """Keep the engine up until cancelled, with longer and longer pauses while it does not stay up."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                began = time.monotonic()
                try:
                    why = await self._live()
                except EngineError as error:
                    why = str(error)
                self._facts = None
                self._why_not = "the engine is being started again"
                await self._engine.stop()
                if time.monotonic() - began > STEADY_SECONDS:
                    pause = FIRST_PAUSE_SECONDS
                self.restarts += 1
                self._log("engine_failed", why=why, restart_in_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._facts, self._why_not = None, "the server is shutting down"
            await self._engine.stop()

    async def _live(self) -> str:
        """Start the engine, prove it, watch it; return why it cannot go on."""
        began = time.monotonic()
        facts = await self._engine.start()
        died = asyncio.create_task(self._engine.died())
        try:
            if not await self._answers(facts, died, None):
                return died.result()
            self._facts = facts
            self.ready_seconds = time.monotonic() - began
            self._log("engine_ready", seconds=round(self.ready_seconds, 3), runtime=facts.runtime, slots=facts.slots)
            while not self._stalled:
                if (await asyncio.wait({died}, timeout=WATCH_SECONDS))[0]:
                    return died.result()
                idle = not self._running and time.monotonic() - self._progress > IDLE_PROBE_SECONDS
                if idle and not await self._answers(facts, died, self._stall_seconds):
                    break
            return died.result() if died.done() else f"no token for {self._stall_seconds:g} s of work"
        finally:
            died.cancel()

    async def _answers(self, facts: Facts, died: "asyncio.Task[str]", seconds: float | None) -> bool:
        """Tell whether the engine generates a token before it dies, and in time. EngineError when it fails to."""
        probe = asyncio.create_task(self._probe(facts))
        try:
            await asyncio.wait({died, probe}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if probe.done():
                probe.result()
            return probe.done()
        finally:
            probe.cancel()

    async def _probe(self, facts: Facts) -> None:
        """Have one token generated. An engine that ends at once with end-of-sequence answered as well."""
        with self._at_work():
            prompt = [facts.bos_id if facts.bos_id is not None else 0]
            async for _ in self._engine.generate(prompt, Sampling(max_tokens=1, temperature=0, ignore_eos=True)):
                pass

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        """See Engine.generate; what comes is also the sign of life."""
        engine = self.engine
        with self._at_work():
            async with contextlib.aclosing(engine.generate(prompt, sampling)) as tokens:
                async for token in tokens:
                    self._progress = time.monotonic()
                    yield token

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """See Engine.score."""
        return await self.engine.score(ids, candidates)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if not self._running:
            self._progress = time.monotonic()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._progress = time.monotonic()


class Admission:
    """Who may ask the engine now: as many requests as it has slots are at work, so many wait, more are refused."""

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._most = slots + queue
        self.requests = 0
        self.working = 0
        self.draining = False
        self._seconds = 1.0
        """A running mean of how long a slot is taken: what Retry-After is reckoned from."""
        self._parallel = slots

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return max(0, self.requests - self.working)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request in; ApiError when the queue is full or the server is shutting down."""
        if self.draining:
            raise unavailable("the server is shutting down; another one may answer", retry_after=1)
        if self.requests >= self._most:
            wait = self._seconds * self.requests / self._parallel
            raise ApiError(429, "queue_full", f"{self.requests} requests are waiting or at work", retry_after=wait)
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, first come, first served, and hold it."""
        async with self._slots:
            began = time.monotonic()
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1
                self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
