"""/v1/completions and /v1/chat/completions: from a request's body to an answer, whole or as a stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from containers.engines.contract import EngineError, Token, UnsupportedError
from containers.gateway import shapes
from containers.gateway.errors import ApiError, too_long, unavailable
from containers.gateway.generation import Delta, answer
from containers.gateway.metrics import Metrics
from containers.gateway.requests import ChatRequest, CompletionRequest, Message
from containers.gateway.settings import Settings
from containers.gateway.shapes import Head
from containers.gateway.supervisor import Admission, Supervisor


@dataclass(slots=True)
class Choice:
    """One of a request's answers, growing."""

    index: int
    deltas: AsyncGenerator[Delta, None]
    begun: bool = False
    text: str = ""
    """All so far: the prompt, too, where it is echoed."""
    tokens: list[Token] = field(default_factory=list)
    made: list[Token] = field(default_factory=list)
    """Those of `tokens` that are no prompt's."""
    count: int = 0
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Take what came."""
        self.begun = True
        self.text += delta.text
        self.tokens += delta.tokens
        self.count += delta.made
        self.made += delta.tokens if delta.made else ()
        self.finish_reason = delta.finish_reason


Chunk = Callable[[Choice, Delta], dict[str, Any]]
Whole = Callable[[Choice], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request that is under way: its choices, and how the client wants them written."""

    head: Head
    choices: list[Choice]
    prompt_tokens: int
    include_usage: bool
    chunk: Chunk
    whole: Whole

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events."""
        extra = {"usage": None} if self.include_usage else {}
        async with contextlib.aclosing(_merge(self.choices)) as merged:
            async for choice, delta in merged:
                chunk = self.chunk(choice, delta)
                choice.add(delta)
                yield shapes.event(self.head.object([chunk], chunk=True, **extra))
        if self.include_usage:
            yield shapes.event(self.head.object([], chunk=True, usage=self._usage()))
        yield shapes.DONE

    async def complete(self) -> dict[str, Any]:
        """Return the whole answer."""
        async with contextlib.aclosing(_merge(self.choices)) as merged:
            async for choice, delta in merged:
                choice.add(delta)
        return self.head.object([self.whole(choice) for choice in self.choices], usage=self._usage())

    def _usage(self) -> dict[str, int]:
        return shapes.usage(self.prompt_tokens, sum(choice.count for choice in self.choices))


class Api:
    """The two endpoints, over one engine."""

    def __init__(
        self, settings: Settings, supervisor: Supervisor, admission: Admission, metrics: Metrics, model: str, mark: str
    ) -> None:
        self._settings, self._supervisor, self._admission, self._metrics = settings, supervisor, admission, metrics
        self.model = model
        self._mark = mark

    async def completion(self, request: CompletionRequest) -> Answer:
        """Begin to answer prompts."""
        self._check_model(request.model)
        given = request.prompts
        prompts = [await self._ids(prompt) for prompt in given]
        self._check_choices(len(prompts) * request.n)
        for ids in prompts:
            self._check_length(ids, request.max_tokens, "prompt")
        choices = []
        for number, ids in enumerate(prompts):
            for choice in range(request.n):
                sampling = request.sampling(request.max_tokens, choice, request.logprobs)
                if request.echo and request.max_tokens == 1:
                    # Clients that score prompts ask for one token more and cut it off: it must be there.
                    sampling = replace(sampling, ignore_eos=True)
                deltas = answer(self._supervisor, self._admission, self._metrics, ids, sampling, request.stop)
                if request.echo:
                    deltas = self._echoed(given[number], ids, request.logprobs, deltas)
                choices.append(Choice(number * request.n + choice, deltas))
        wanted, ids_wanted = request.logprobs is not None, request.return_token_ids

        def chunk(choice: Choice, delta: Delta) -> dict[str, Any]:
            logprobs = shapes.completion_logprobs(delta.tokens, len(choice.text)) if wanted and delta.tokens else None
            text = _text(choice.index, delta.text, delta.finish_reason, logprobs)
            return text | _ids(delta.tokens if delta.made else (), ids_wanted)

        def whole(choice: Choice) -> dict[str, Any]:
            logprobs = shapes.completion_logprobs(choice.tokens, 0) if wanted else None
            text = _text(choice.index, choice.text, choice.finish_reason, logprobs)
            return text | _ids(choice.made, ids_wanted)

        return Answer(
            head=Head(kind="text_completion", prefix="cmpl", model=self.model, fingerprint=self._mark),
            choices=choices,
            prompt_tokens=sum(map(len, prompts)),
            include_usage=request.include_usage,
            chunk=chunk,
            whole=whole,
        )

    async def chat(self, request: ChatRequest) -> Answer:
        """Begin to answer a conversation."""
        self._check_model(request.model)
        self._check_choices(request.n)
        ids = await self.render(request.messages, add_generation_prompt=True)
        self._check_length(ids, request.limit or 1, "messages")
        room = self._supervisor.facts.context_tokens - len(ids)
        schema = request.response_format.schema_wanted
        if schema is not None and not self._supervisor.facts.schemas:
            message = "this engine cannot hold an answer to a JSON schema"
            raise ApiError(400, "unsupported_parameter", message, param="response_format")
        candidates = request.top_logprobs if request.logprobs else None
        choices = []
        for index in range(request.n):
            sampling = request.sampling(request.limit or room, index, candidates, schema)
            deltas = answer(self._supervisor, self._admission, self._metrics, ids, sampling, request.stop)
            choices.append(Choice(index, deltas))

        def chunk(choice: Choice, delta: Delta) -> dict[str, Any]:
            # The role comes with the first token, not before it: clients take the first chunk for the first token.
            role = {} if choice.begun else {"role": "assistant"}
            logprobs = shapes.chat_logprobs(delta.tokens) if request.logprobs and delta.tokens else None
            content = {"content": delta.text} if delta.text or not choice.begun else {}
            return {
                "index": choice.index,
                "delta": {**role, **content},
                "logprobs": logprobs,
                "finish_reason": delta.finish_reason,
            } | _ids(delta.tokens, request.return_token_ids)

        def whole(choice: Choice) -> dict[str, Any]:
            return {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": shapes.chat_logprobs(choice.tokens) if request.logprobs else None,
                "finish_reason": choice.finish_reason,
            } | _ids(choice.made, request.return_token_ids)

        return Answer(
            head=Head(kind="chat.completion", prefix="chatcmpl", model=self.model, fingerprint=self._mark),
            choices=choices,
            prompt_tokens=len(ids),
            include_usage=request.include_usage,
            chunk=chunk,
            whole=whole,
        )

    async def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        """Return a conversation's ids."""
        plain = [{"role": message.role, "content": message.text} for message in messages]
        return await self._supervisor.engine.render(plain, add_generation_prompt=add_generation_prompt)

    async def _echoed(
        self, given: str | list[int], ids: list[int], candidates: int | None, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """Put the prompt before its answer, scored where log-probabilities are wanted."""
        text = given if isinstance(given, str) else await self._supervisor.engine.detokenize(ids)
        scored: list[Token] = []
        if candidates is not None:
            async with self._admission.slot():
                scored = await self._supervisor.score(ids, candidates)
        yield Delta(text, tuple(scored), 0)
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await self._supervisor.engine.tokenize(prompt, add_special=True)
        size = self._supervisor.facts.vocabulary_size
        if (largest := max(prompt)) >= size:
            message = (
                f"prompt holds the token id {largest}, this model has {size}; ids must be this model's own. A client "
                "that tokenizes by itself must be told so (LangChain: check_embedding_ctx_length=False)"
            )
            raise ApiError(400, "invalid_token_id", message, param="prompt")
        return prompt

    def _check_model(self, asked: str | None) -> None:
        if asked not in (None, self.model):
            raise ApiError(404, "model_not_found", f"{asked!r} is not served here; {self.model!r} is", param="model")

    def _check_choices(self, count: int) -> None:
        if count > (most := self._settings.max_choices):
            message = f"{count} answers asked for in one request, at most {most}"
            raise ApiError(400, "too_many_choices", message, param="n")

    def _check_length(self, ids: Sequence[int], max_tokens: int, param: str) -> None:
        context, most = self._supervisor.facts.context_tokens, self._settings.max_prompt_tokens
        if not ids:
            raise ApiError(400, "empty_prompt", "the prompt has no tokens", param=param)
        if most is not None and len(ids) > most:
            raise too_long(f"the prompt has {len(ids)} tokens, at most {most} are taken here", param)
        if len(ids) + max_tokens > context:
            raise too_long(
                f"this model's context is {context} tokens; the prompt has {len(ids)}, and {max_tokens} more are asked",
                param,
            )


def _text(index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _ids(tokens: Sequence[Token], wanted: bool) -> dict[str, Any]:
    return {"token_ids": shapes.token_ids(tokens)} if wanted else {}


async def _merge(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Delta], None]:
    """Yield all choices' deltas as they come; closing it closes them all, and an error in one ends them all."""
    if len(choices) == 1:
        async with contextlib.aclosing(choices[0].deltas) as deltas:
            async for delta in deltas:
                yield choices[0], delta
        return
    queue: asyncio.Queue[tuple[Choice, Delta] | BaseException | None] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async with contextlib.aclosing(choice.deltas) as deltas:
                async for delta in deltas:
                    queue.put_nowait((choice, delta))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def api_error(error: Exception) -> ApiError:
    """Say any error in the API's terms."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnsupportedError):
        return ApiError(400, "unsupported", str(error))
    if isinstance(error, EngineError):
        return unavailable("the engine failed while it answered; it is being started again")
    if isinstance(error, TimeoutError):
        return ApiError(504, "timeout", "the answer took longer than this server allows")
    return ApiError(500, "internal_error", "something is wrong in the server; its log has this request's id")
