"""The gateway: one engine behind OpenAI's API and the contracts of the clouds that run such images."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from containers.engines.contract import Engine, EngineError, UnsupportedError
from containers.gateway.api import Answer, Api, api_error
from containers.gateway.errors import ApiError
from containers.gateway.evidence import Evidence
from containers.gateway.front import Front
from containers.gateway.keys import Keys, Rates
from containers.gateway.metrics import Metrics
from containers.gateway.page import PAGE, policy
from containers.gateway.reply import Reply
from containers.gateway.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from containers.gateway.settings import Settings, vertex
from containers.gateway.supervisor import Admission, Log, Supervisor

Body = TypeVar("Body", bound=BaseModel)

READY = ("/health", "/health/ready", "/ping")
"""Ready or not, by the names that Hugging Face Endpoints and guidellm, Kubernetes, and SageMaker ask by."""
INVOKE = ("/invocations", "/score")
"""One route for chats and completions: SageMaker's, and Azure ML's."""


class Gateway:
    """What lives as long as the server does."""

    def __init__(self, settings: Settings, engine: Engine, evidence: Evidence, log: Log) -> None:
        self.settings, self.evidence, self.metrics, self.log = settings, evidence, Metrics(), log
        self.created = int(time.time())
        self._supervising: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(engine, settings.stall_seconds, log)
        self.admission = Admission(settings.slots, settings.queue)
        model = settings.model or evidence.artifact.name
        mark = f"assay-{evidence.artifact.digest[:12]}"
        self.api = Api(settings, self.supervisor, self.admission, self.metrics, model, mark)
        for name, about, value in (
            ("assay_queue_length", "Requests that wait for a slot", lambda: self.admission.waiting),
            ("assay_requests_running", "Requests that hold a slot", lambda: self.admission.working),
            ("assay_ready", "1 when the engine answers", lambda: self.supervisor.ready),
            ("assay_engine_restarts", "Times the engine was started again", lambda: self.supervisor.restarts),
        ):
            self.metrics.gauge(name, about, value)

    def reply(self, body: ChatRequest | CompletionRequest, request: Request) -> Reply:
        """Answer a chat or a completion."""
        if self.settings.log_prompts:
            self.log("prompt", request_id=request.state.request_id, body=body.model_dump(mode="json"))
        seconds = self.settings.timeout_seconds
        return Reply(lambda: self.begin(body), stream=body.stream, admission=self.admission, seconds=seconds)

    async def start(self) -> None:
        """Begin to bring the engine up."""
        self._supervising = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        """Stop the engine; what is being answered fails."""
        assert self._supervising is not None
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)

    async def begin(self, body: ChatRequest | CompletionRequest) -> Answer:
        """Begin to answer a chat or a completion."""
        return await (self.api.chat(body) if isinstance(body, ChatRequest) else self.api.completion(body))


def build(settings: Settings, engine: Engine, evidence: Evidence, log: Log) -> FastAPI:
    """Put the server together. ValueError when its keys cannot be read."""
    gateway = Gateway(settings, engine, evidence, log)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        yield
        await gateway.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    _openai_routes(app, gateway)
    _tokenizer_routes(app, gateway)
    _own_routes(app, gateway)
    _cloud_routes(app, gateway)
    _errors(app)
    public = {"/health/live"}
    if settings.public_health:
        public |= {*READY, vertex().get("HEALTH_ROUTE", "/health")}
    keys = Keys({}) if settings.auth == "none" else Keys.read(settings.keys_file, settings.api_keys)
    app.add_middleware(
        Front,
        keys=keys,
        rates=Rates(settings.requests_per_minute),
        public=frozenset(public),
        most_bytes=settings.request_bytes,
        metrics=gateway.metrics,
        log=log,
    )
    return app


def _openai_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(gateway)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != gateway.api.model:
            raise ApiError(404, "model_not_found", f"{name!r} is not served here; {gateway.api.model!r} is")
        return _model(gateway)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return gateway.reply(await _body(CompletionRequest, request), request)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return gateway.reply(await _body(ChatRequest, request), request)


def _own_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy(), "Cache-Control": "no-cache"})

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    async def ready() -> Response:
        good = gateway.supervisor.ready and not gateway.admission.draining
        why = "ready" if good else "shutting down" if gateway.admission.draining else gateway.supervisor.why_not
        return JSONResponse({"status": why}, 200 if good else 503)

    for route in READY:
        app.get(route)(ready)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/evidence")
    async def evidence() -> dict[str, Any]:
        return gateway.evidence.records


def _tokenizer_routes(app: FastAPI, gateway: Gateway) -> None:
    """What lm-eval and load generators ask of a server instead of loading the tokenizer themselves."""
    supervisor = gateway.supervisor

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await _body(TokenizeRequest, request)
        if body.messages is not None:
            ids = await gateway.api.render(body.messages, add_generation_prompt=body.add_generation_prompt)
        else:
            ids = await supervisor.engine.tokenize(body.prompt or "", add_special=body.add_special_tokens)
        return {"tokens": ids, "count": len(ids), "max_model_len": supervisor.facts.context_tokens}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, str]:
        body = await _body(DetokenizeRequest, request)
        return {"prompt": await supervisor.engine.detokenize(body.tokens)}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        facts = supervisor.facts
        return {
            "bos_token": await _special(gateway, facts.bos_id),
            "eos_token": await _special(gateway, facts.eos_id),
            "bos_token_id": facts.bos_id,
            "eos_token_id": facts.eos_id,
            "vocab_size": facts.vocabulary_size,
            "model_max_length": facts.context_tokens,
        }


def _cloud_routes(app: FastAPI, gateway: Gateway) -> None:
    async def invocations(request: Request) -> Response:
        return gateway.reply(_either(await _json(request)), request)

    async def predict(request: Request) -> Response:
        """Vertex AI: `instances` are requests, answered together; a request by itself is answered as it is."""
        body = await _json(request)
        if not isinstance(body, dict) or "instances" not in body:
            return gateway.reply(_either(body), request)
        shared = body.get("parameters") or {}
        wanted = [_either({**shared, **one, "stream": False}) for one in body["instances"]]
        with gateway.admission.request():
            async with asyncio.timeout(gateway.settings.timeout_seconds):
                answers = [await gateway.begin(one) for one in wanted]
                predictions = await asyncio.gather(*(answer.complete() for answer in answers))
        return JSONResponse({"predictions": predictions})

    for route in INVOKE:
        app.post(route)(invocations)
    app.post(vertex().get("PREDICT_ROUTE", "/predict"))(predict)
    if (health := vertex().get("HEALTH_ROUTE")) and health not in READY:
        (ready,) = (route for route in app.routes if getattr(route, "path", "") == "/health/ready")
        app.get(health)(ready.endpoint)  # type: ignore[attr-defined]


def _errors(app: FastAPI) -> None:
    async def failed(_: Request, error: Exception) -> Response:
        failure = api_error(error)
        return JSONResponse(failure.body, failure.status, failure.headers)

    for kind in (ApiError, EngineError, UnsupportedError, TimeoutError):
        app.add_exception_handler(kind, failed)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return await failed(request, ApiError(error.status_code, code, message))


async def _body(kind: type[Body], request: Request) -> Body:
    """Read a request's body, whatever type it says it is of. ApiError says the first of what is wrong with it."""
    return _checked(kind, await _json(request))


def _either(body: Any) -> ChatRequest | CompletionRequest:
    if isinstance(body, dict) and "messages" in body:
        return _checked(ChatRequest, body)
    return _checked(CompletionRequest, body)


def _checked(kind: type[Body], value: Any) -> Body:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
    where = [str(part) for part in problem["loc"]]
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    message = f"{'.'.join(where) or 'body'}: {problem['msg'].removeprefix('Value error, ')}"
    raise ApiError(400, code, message, param=where[0] if where else None)


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None


def _model(gateway: Gateway) -> dict[str, Any]:
    facts = gateway.supervisor.facts
    return {
        "id": gateway.api.model, "object": "model", "created": gateway.created, "owned_by": "assay",
        "max_model_len": facts.context_tokens, "artifact": gateway.evidence.artifact.digest, "runtime": facts.runtime,
    }  # fmt: skip


async def _special(gateway: Gateway, id_: int | None) -> str | None:
    return None if id_ is None else await gateway.supervisor.engine.detokenize([id_])
