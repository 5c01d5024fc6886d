"""English that every CPython already carries: its docstrings and the topics of ``help()``.

Calibration and held-out measurement both need running text, and a pipeline that runs offline cannot download any.
Each CPython installation holds about 2 MB of edited technical English: the docstrings of its standard library and
the chapters of the language reference that ``help("TOPIC")`` shows.  Both are read from source with ``ast``.  No
module of the standard library is imported for it, since importing some of them opens windows, browsers or sockets.

Two splits are offered, and no text may stand in both.  Whole documents are held out, by the names listed below,
rather than every n-th line: neighbouring paragraphs of one document share their subject and their wording, so a
finer split would flatter a model which was trained on the other half.  Many topics quote other topics in full
("compound" contains "if", "with" and "class"), so what quotes a held-out document belongs to neither split.
"""

import ast
import inspect
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pipeline.texts.document import Document

Split = Literal["training", "evaluation"]

EVALUATION: Final = frozenset(
    {
        "module:logging",
        "module:statistics",
        "topic:compound",
        "topic:formatstrings",
        "topic:types",
        "topic:typesmapping",
    }
)
"""Names of the documents held out for evaluation. Names which an installation lacks are passed over."""

LEFT_OUT: Final = frozenset(
    {
        "topic:async",
        "topic:class",
        "topic:context-managers",
        "topic:else",
        "topic:for",
        "topic:function",
        "topic:if",
        "topic:try",
        "topic:while",
        "topic:with",
    }
)
"""Names of the documents in neither split: they repeat long passages of a held-out document, or are repeated by it."""

_TEST_DIRECTORIES: Final = frozenset({"test", "tests", "idle_test"})
"""Directories of test suites. Their docstrings are mostly single words and deliberate nonsense."""

_OTHER_DIRECTORIES: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
"""Directories below the standard library's which hold installed packages or compiled files, not its sources."""

_TOPICS_FILE: Final = Path("pydoc_data", "topics.py")

_HOLDERS = ast.stmt | ast.excepthandler | ast.match_case
"""Nodes below which statements stand."""

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents(split: Split) -> Iterator[Document]:
    """Yield the documents of one split, sorted by name, the same ones at each call.

    A document is one whole topic of ``help()``, named ``topic:NAME``, or all docstrings of one source file of the
    standard library in source order, named ``module:DOTTED.NAME``.

    Args:
        split: ``"training"`` for everything that may be learnt from, which includes calibration; ``"evaluation"``
            for what is held out.

    """
    for document in _all_documents():
        if document.name in LEFT_OUT:
            continue
        if (document.name in EVALUATION) == (split == "evaluation"):
            yield document


@cache
def _all_documents() -> tuple[Document, ...]:
    """Return every document of this installation; cached, since parsing some 600 files takes seconds."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [*_topic_documents(root / _TOPICS_FILE), *_module_documents(root)]
    return tuple(sorted(found, key=lambda document: document.name))


def _topic_documents(path: Path) -> Iterator[Document]:
    """Yield the topics of ``help()``, which lie in one literal ``topics = {name: text, ...}``."""
    tree = _parsed(path)
    if tree is None:
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(name=f"topic:{name}", text=inspect.cleandoc(text))


def _module_documents(root: Path) -> Iterator[Document]:
    """Yield one document for each source file below ``root`` which has docstrings at all."""
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _is_excluded(relative):
            continue
        tree = _parsed(path)
        text = "\n\n".join(_docstrings(tree)) if tree is not None else ""
        if text:
            yield Document(name=f"module:{_dotted(relative)}", text=text)


def _is_excluded(relative: Path) -> bool:
    """Say whether a path below the standard library is a test, an installed package or platform-dependent."""
    directories = set(relative.parts[:-1])
    # A _sysconfigdata module describes how this very interpreter was built, so it would differ between machines.
    built = relative.name.startswith("_sysconfigdata")
    return built or bool(directories & (_TEST_DIRECTORIES | _OTHER_DIRECTORIES))


def _dotted(relative: Path) -> str:
    """Return the importable name of a source file: ``json/__init__.py`` is ``json``."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parsed(path: Path) -> ast.Module | None:
    """Parse one source file, or return ``None`` for a file that is absent or is no valid Python.

    Distributions split the standard library into packages, and ``lib2to3`` ships files broken on purpose.
    """
    try:
        with warnings.catch_warnings():
            # Old modules contain escapes such as "\d"; that is for their authors to know, not for our users.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the cleaned docstrings of a module, its classes and its functions, in source order."""
    # The walk goes breadth first; a reader meets a method's text directly after that of its class.
    for node in sorted(_documented(tree), key=lambda node: getattr(node, "lineno", 0)):
        text = ast.get_docstring(node, clean=True)
        if text and text.strip():
            yield text.strip()


def _documented(tree: ast.Module) -> Iterator[_Documented]:
    """Yield what may have a docstring; expressions, most of a tree, hold none of it and are not walked."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, _HOLDERS))
        if isinstance(node, _Documented):
            yield node
