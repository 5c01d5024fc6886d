"""A stand-in for TensorRT-LLM's server: its classes, flags, routes and failures as the two flags.toml say.

A test makes it importable as `tensorrt_llm`, for the guard to wrap. It stands alone; STANDIN in the environment asks
for failures: `crash_after` tokens, `together` tokens in one event, `token_seconds` between them.
"""

import argparse
import asyncio
import json
import os
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

ROOT = Path(__file__).parents[2]
FIELDS = tomllib.loads((ROOT / "containers/engines/tensorrt_llm/flags.toml").read_text(encoding="utf-8"))["request"]
FLAGS = tomllib.loads((ROOT / "pipeline/backends/tensorrt_llm/flags.toml").read_text(encoding="utf-8"))["trtllm-serve"]
EOS = 2
LAST = 50
"""After this one comes end-of-sequence."""


def follower(token: int) -> int:
    """Return the token after one."""
    return EOS if token == LAST else 100 + token * 7 % 3000


class OpenAIServer:
    """What the guard wraps."""

    def __init__(self, longest: int) -> None:
        self.app = FastAPI()
        self.running = 0
        self.longest = longest
        self.wish: dict[str, Any] = json.loads(os.environ.get("STANDIN", "{}"))

        @self.app.get("/health")
        async def health() -> Response:
            return Response(status_code=200)

        @self.app.get("/version")
        async def version() -> dict[str, str]:
            return {"version": "1.2.1"}

        @self.app.get("/running")
        async def running() -> int:
            return self.running

        @self.app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            if unknown := body.keys() - FIELDS.keys():
                return JSONResponse({"error": f"Extra inputs are not permitted: {sorted(unknown)}"}, 400)
            asked = len(body["prompt"]) + body["max_tokens"]
            if asked > self.longest:
                message = f"The sum of prompt length and max_tokens ({asked}) exceeds max_seq_len ({self.longest})"
                error = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
                return JSONResponse(error, 400)
            return StreamingResponse(self.events(body), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        try:
            made: list[int] = []
            told, why = 0, None
            while why is None:
                await asyncio.sleep(self.wish.get("token_seconds", 0))
                made.append(follower(made[-1] if made else body["prompt"][-1]))
                if len(made) == self.wish.get("crash_after"):
                    print("[TRT-LLM] [E] CppExecutorError: an illegal memory access was encountered", flush=True)
                    os._exit(1)
                ended = made[-1] in body["stop_token_ids"] or (made[-1] == EOS and not body["ignore_eos"])
                why = "stop" if ended else "length" if len(made) == body["max_tokens"] else None
                if why or len(made) - told == self.wish.get("together", 1):
                    ids = None if body.get("detokenize", True) else made[told:]
                    choice = {"index": 0, "text": "", "token_ids": ids, "finish_reason": why, "logprobs": None}
                    yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
                    told = len(made)
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1

    async def __call__(self, host: str, port: int, sockets: Any = None) -> None:
        await uvicorn.Server(uvicorn.Config(self.app, host=host, port=port, log_level="info")).serve(sockets=sockets)


def main() -> None:
    """The command, `trtllm-serve`; argparse ends the process for a flag that is not listed."""
    parser = argparse.ArgumentParser(prog="trtllm-serve", allow_abbrev=False)
    parser.add_argument("model", type=Path)
    for flag in FLAGS["flags"]:
        parser.add_argument(flag)
    options = parser.parse_args()
    print("[TRT-LLM] [I] Starting TensorRT-LLM init.", flush=True)
    asyncio.run(OpenAIServer(int(options.max_seq_len))(options.host, int(options.port)))
