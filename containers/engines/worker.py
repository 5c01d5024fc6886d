"""A process that holds one artifact in a Python runtime: `python -m containers.engines.worker FOLDER ...`.

A process of its own, because decoding would hold up the gateway's event loop, a crash in native code would take the
gateway along, and a hang can only be ended by killing. Messages are lines of JSON over an inherited socket; what
libraries print goes to the log.

    in   {"key": 1, "generate": [ids], "sampling": {...}}    {"key": 2, "score": [ids], "candidates": 1}
         {"key": 3, "encode": "text", "add_special": true}    {"key": 4, "decode": [ids]}
         {"key": 5, "render": [messages], "add_generation_prompt": true}    {"cancel": 1}
    out  {"facts": {...}} once, then {"key": 1, "token": [...]} ..., {"key": 1, "end": true}; {"key": 2, "result": ...};
         {"key": 5, "unsupported": "why"}
"""

import argparse
import json
import select
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np

from containers.engines.contract import Facts, Sampling, UnsupportedError
from containers.engines.sampling import likeliest
from containers.engines.slots import Batch, Made, Slots
from containers.engines.text import Stream, Text
from evals.runner import Ids, Runner
from pipeline import compute
from pipeline.checkpoints import tokenizer
from pipeline.errors import AssayError
from pipeline.params import RECIPE
from pipeline.records import FILE, Artifact


class Scored(Protocol):
    """An artifact that is loaded to be scored."""

    facts: Facts

    @property
    def runner(self) -> Runner:
        """What evaluation scored it through."""
        ...

    def piece(self, id_: int) -> str:
        """Return what one token adds to a text."""
        ...


class Model(Scored, Protocol):
    """An artifact, loaded once for both: scored through its Runner, generated through its slots."""

    @property
    def slots(self) -> Slots:
        """Sequences that advance together."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    @property
    def text(self) -> Text:
        """The tokenizer."""
        ...


class Worker:
    """Answers messages about scores, and is what the worker that generates as well builds on."""

    def __init__(self, model: Scored, wire: socket.socket) -> None:
        self._model = model
        self._wire = wire
        self._unread = b""
        self._scorings: dict[int, Iterator[list[Any] | None]] = {}

    def run(self) -> None:
        """Serve until the other end closes."""
        self._send({"facts": asdict(self._model.facts)})
        while (messages := self._receive(wait=not self._busy())) is not None:
            for message in messages:
                try:
                    self._take(message)
                except UnsupportedError as error:
                    self._send({"key": message["key"], "unsupported": str(error)})
            self._advance()

    def _busy(self) -> bool:
        return bool(self._scorings)

    def _take(self, message: dict[str, Any]) -> None:
        if "score" in message:
            ids = self._ids(message["score"])
            self._scorings[message["key"]] = self._score(ids, message["candidates"])
        elif "cancel" in message:
            self._scorings.pop(message["cancel"], None)

    def _ids(self, ids: list[int], more: int = 0) -> Ids:
        """Check what would end the process otherwise: no tokens, or unknown ones, or too many with `more` to come."""
        context = self._model.facts.context_tokens
        if not ids:
            raise UnsupportedError("there are no tokens")
        if len(ids) + more > context:
            raise UnsupportedError(f"the context is {context} tokens; {len(ids)} came, with {more} more asked for")
        return np.array(self._known(ids), np.int32)

    def _known(self, ids: list[int]) -> list[int]:
        size = self._model.facts.vocabulary_size
        if ids and (min(ids) < 0 or max(ids) >= size):
            raise UnsupportedError(f"token ids go from 0 to {size - 1}; {min(ids)} to {max(ids)} came")
        return ids

    def _advance(self) -> None:
        """Score one block of the oldest request: others' tokens are not held up for a whole window."""
        if self._scorings:
            key, scoring = next(iter(self._scorings.items()))
            if (result := next(scoring)) is not None:
                del self._scorings[key]
                self._send({"key": key, "result": result})

    def _score(self, ids: Ids, candidates: int) -> Iterator[list[Any] | None]:
        """Yield None after each block, the scored tokens at the end."""
        tokens: list[Any] = [[int(ids[0]), self._model.piece(int(ids[0])), None, []]]
        for block in self._model.runner.logits(ids) if len(ids) > 1 else ():
            for row in block:
                target = int(ids[len(tokens)])
                logprob, top = likeliest(row, target, candidates)
                tokens.append([target, self._model.piece(target), logprob, self._named(top)])
            yield None
        yield tokens

    def _named(self, candidates: Sequence[tuple[int, float]]) -> list[tuple[int, str, float]]:
        return [(id_, self._model.piece(id_), logprob) for id_, logprob in candidates]

    def _receive(self, wait: bool) -> list[dict[str, Any]] | None:
        """Return the messages that have come, None at the end; with `wait`, at least a part of one."""
        while select.select([self._wire], [], [], None if wait else 0)[0]:
            data = self._wire.recv(2**20)
            if not data:
                return None
            self._unread += data
            wait = False
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def _send(self, message: Mapping[str, Any]) -> None:
        self._wire.sendall(json.dumps(message).encode() + b"\n")


class Generator(Worker):
    """Requests for tokens advance together, everything else is done between two rounds."""

    _model: Model

    def __init__(self, model: Model, wire: socket.socket) -> None:
        super().__init__(model, wire)
        self._batch = Batch(model.slots, model.eos_ids)
        self._streams: dict[int, Stream] = {}

    def _busy(self) -> bool:
        return bool(self._batch) or super()._busy()

    def _take(self, message: dict[str, Any]) -> None:
        text = self._model.text
        if "generate" in message:
            sampling = Sampling(**message["sampling"])
            if sampling.max_tokens < 1:
                raise UnsupportedError(f"at least one token must be asked for, not {sampling.max_tokens}")
            prompt = self._ids(message["generate"], sampling.max_tokens)
            self._streams[message["key"]] = text.stream(message["generate"])
            self._batch.add(message["key"], prompt, sampling)
        elif "encode" in message:
            self._send({"key": message["key"], "result": text.encode(message["encode"], message["add_special"])})
        elif "decode" in message:
            self._send({"key": message["key"], "result": text.decode(self._known(message["decode"]))})
        elif "render" in message:
            ids = text.render(message["render"], message["add_generation_prompt"])
            self._send({"key": message["key"], "result": ids})
        else:
            super()._take(message)
            if "cancel" in message:
                self._batch.cancel(message["cancel"])
                self._streams.pop(message["cancel"], None)

    def _advance(self) -> None:
        for made in self._batch.round():
            self._give(made)
        super()._advance()

    def _give(self, made: Made | int) -> None:
        if isinstance(made, int):
            del self._streams[made]
            self._send({"key": made, "end": True})
            return
        text = self._streams[made.key].add(made.id)
        self._send({"key": made.key, "token": [made.id, text, made.logprob, self._named(made.candidates)]})
        if made.last:
            del self._streams[made.key]
            self._send({"key": made.key, "end": True})


def main() -> int:
    """Load the artifact and serve it on the inherited socket; a failure is one line on stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--device", choices=get_args(compute.Device), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    options = parser.parse_args()
    wire = socket.socket(fileno=options.socket)
    with ExitStack() as stack:
        try:
            recipe = RECIPE.validate_python(Artifact.load(options.artifact / FILE).recipe)
            runner = stack.enter_context(recipe.open(options.artifact, compute.here(options.threads, options.device)))
            worker = _worker(recipe.backend, options, runner, wire)
        except AssayError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        worker.run()
    return 0


def _worker(backend: str, options: argparse.Namespace, runner: Any, wire: socket.socket) -> Worker:
    """Let the runtime's own module describe what it loaded."""
    if backend == "gguf":
        from containers.engines.llama_cpp.model import model as scored

        return Worker(scored(runner), wire)
    sizes = {"slots": options.slots, "context_tokens": options.context}
    if backend == "onnx":
        from containers.engines.onnxruntime.model import model as onnx

        return Generator(onnx(options.artifact, runner, **sizes), wire)
    from containers.engines.transformers.model import model as transformers

    return Generator(transformers(options.artifact, runner, **sizes), wire)


if __name__ == "__main__":
    tokenizer.spare_torch()
    sys.exit(main())
