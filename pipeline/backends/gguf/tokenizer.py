"""The artifact's own tokenizer, in a process of its own.

llama.cpp ends the whole process on a character that a vocabulary without byte tokens cannot express. For the structural
checks that is a finding like any other, and must not take the pipeline down.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.backends.gguf import library
from pipeline.errors import BuildError

_worker = ExitStack()
_loaded: list[Any] = []
"""In the worker process: the one model, loaded without weights."""


@contextmanager
def encoder(path: Path) -> Iterator[Callable[[str], list[int]]]:
    """Give text -> ids, with no BOS or EOS added and special tokens recognised; the worker starts on first use."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_open, initargs=(path,)) as pool:

        def encode(text: str) -> list[int]:
            try:
                return pool.submit(_encode, text).result()
            except BrokenProcessPool as error:
                raise BuildError(
                    f"{path.name}: llama.cpp's tokenizer crashes on {text[:40]!r}...; its vocabulary has no tokens for "
                    "some characters and no byte tokens either, so this checkpoint cannot be served as GGUF"
                ) from error

        yield encode


def _open(path: Path) -> None:
    _loaded.append(_worker.enter_context(library.model(path, vocabulary_only=True)))


def _encode(text: str) -> list[int]:
    return [int(token) for token in library.tokenize(_loaded[0], text)]
