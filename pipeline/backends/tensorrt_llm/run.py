"""A TensorRT-LLM artifact as a Runner: a process where TensorRT-LLM is, asked over a pipe."""

import json
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from evals.runner import Ids, Logits, Prompt
from pipeline import endings
from pipeline.backends.tensorrt_llm import commands, place
from pipeline.backends.tensorrt_llm import target as targets
from pipeline.backends.tensorrt_llm.inside.score import MAGIC
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.compute import Compute
from pipeline.errors import MeasurementError, NativeCrashError
from pipeline.processes import KEPT_LINES

SCORE = Path(__file__).parent / "inside" / "score.py"

BLOCK_BYTES = 256 * 2**20
"""Float32 logits given out at once: with 150,000 tokens of vocabulary, 447 rows."""

BATCH_BYTES = 2**30
"""Logits of the prompts that run together: TensorRT-LLM keeps them whole until it has them all."""


class Pipe:
    """The process at the other end. What it prints is kept, for the error when it dies."""

    def __init__(self, command: Sequence[str], folder: Path, what: str) -> None:
        self.what = what
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=place.surroundings(),
            cwd=folder,
        )
        self._reader = threading.Thread(target=self._keep, daemon=True)
        self._reader.start()
        self._skip_greeting()

    def ask(self, question: Mapping[str, Any]) -> None:
        """Send one question."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def answer(self) -> dict[str, Any]:
        """Read one line; MeasurementError with the other end's words when it refuses or is gone."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise MeasurementError(f"{self.what}: {message['error']}")
        return message

    def numbers(self, rows: int, columns: int) -> Logits:
        """Read float32 [rows, columns]."""
        assert self._child.stdout is not None
        block = np.empty((rows, columns), np.float32)
        unread = memoryview(cast(Any, block)).cast("B")
        while unread:
            count = self._child.stdout.readinto(unread)  # type: ignore[attr-defined]
            if not count:
                raise self._ended()
            unread = unread[count:]
        return block

    def close(self) -> None:
        """End it: its stdin's end tells it to go; what does not is killed."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _skip_greeting(self) -> None:
        """Pass over what an image's entry point prints."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line == MAGIC:
                return
        raise self._ended()

    def _keep(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            if text := line.decode(errors="replace").strip():
                self._tail.append(text)

    def _ended(self) -> MeasurementError | NativeCrashError:
        code = self._child.wait()
        self._reader.join(timeout=5)
        how = f"{self.what} {endings.words(code)}"
        message = "\n".join(
            [f"{how}; its last lines:", *(f"  {line}" for line in endings.last_lines(list(self._tail)))]
        )
        return NativeCrashError(message) if endings.crashed(how) else MeasurementError(message)


class TensorRtLlmRunner:
    """Scores through the logits of prompts, generates greedily."""

    def __init__(self, pipe: Pipe, vocabulary_size: int, settings: Mapping[str, str]) -> None:
        self._pipe = pipe
        self._columns = vocabulary_size
        self._settings = settings

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return self._settings

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        self._pipe.ask({"logits": [ids[:-1].tolist()], "skip": [0]})
        yield from self._blocks()

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations. A prompt runs again for each of its continuations."""
        pairs = [(prompt, ids) for prompt, several in prompts for ids in several]
        for batch in self._batches(pairs):
            fed = [[*prompt.tolist(), *ids[:-1].tolist()] for prompt, ids in batch]
            self._pipe.ask({"logits": fed, "skip": [len(prompt) - 1 for prompt, _ in batch]})
            for _ in batch:
                yield np.concatenate(list(self._blocks()))

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        self._pipe.ask({"generate": prompt.tolist(), "tokens": new_tokens})
        try:
            while "token" in (message := self._pipe.answer()):
                yield int(message["token"])
        except GeneratorExit:  # whoever asked has enough; the next question's answer must not begin with the rest
            while "token" in self._pipe.answer():
                pass
            raise

    def _blocks(self) -> Iterator[Logits]:
        told = self._pipe.answer()
        rows, columns = told["rows"], told["columns"]
        if columns != self._columns:
            raise MeasurementError(
                f"{self._pipe.what}: {columns} logits a token came, the vocabulary has {self._columns}"
            )
        step = max(1, BLOCK_BYTES // (4 * columns))
        for start in range(0, rows, step):
            yield self._pipe.numbers(min(step, rows - start), columns)

    def _batches(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[list[tuple[Ids, Ids]]]:
        """Split so that the logits of all tokens of a batch, prompts included, stay within BATCH_BYTES."""
        most = max(1, BATCH_BYTES // (4 * self._columns))
        batch: list[tuple[Ids, Ids]] = []
        tokens = 0
        for pair in pairs:
            size = len(pair[0]) + len(pair[1])
            if batch and tokens + size > most:
                yield batch
                batch, tokens = [], 0
            batch.append(pair)
            tokens += size
        if batch:
            yield batch


def job(recipe: TensorRtLlmRecipe, artifact: Path) -> dict[str, Any]:
    """Return what inside/score.py is asked to load."""
    folder = artifact.resolve()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "version": place.version(),
        "mode": recipe.mode,
        "model": str(folder / commands.ENGINE if recipe.mode == "engine" else folder),
        "vocabulary": config["vocab_size"],
        "tensor_parallel": recipe.tensor_parallel,
        "max_batch_size": recipe.max_batch_size,
        "max_num_tokens": recipe.max_num_tokens,
        "max_sequence_tokens": recipe.max_sequence_tokens,
        "kv_cache": recipe.kv_cache,
    }


@contextmanager
def runner(recipe: TensorRtLlmRecipe, artifact: Path, compute: Compute) -> Iterator[TensorRtLlmRunner]:
    """Load an artifact; MeasurementError when it was built for another architecture or version, or does not load."""
    if (reason := targets.mismatch(targets.load(artifact), compute.gpus, place.version())) is not None:
        raise MeasurementError(f"{artifact}: {reason}")
    where = place.find()
    asked = job(recipe, artifact)
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        file = Path(folder).resolve() / "job.json"
        file.write_text(json.dumps(asked), encoding="utf-8")
        readable = [artifact.resolve(), SCORE.parent]
        command = where.command(["python3", SCORE, file], readable=readable, writable=file.parent)
        pipe = None
        try:
            pipe = Pipe(command, file.parent, f"{artifact}: TensorRT-LLM")
            settings = {
                "runtime": f"tensorrt_llm {pipe.answer()['version']}",
                "backend": "tensorrt" if recipe.mode == "engine" else "pytorch",
                "dtype": "bfloat16",
                "kv_cache": recipe.kv_cache,
                "tensor_parallel": str(recipe.tensor_parallel),
                "device": compute.name,
            }
            yield TensorRtLlmRunner(pipe, asked["vocabulary"], settings)
        finally:
            if pipe is not None:
                pipe.close()
            where.end(command)
