"""What a stage's output depends on beside its inputs: the code that makes it, and the tools that shape it.

`inputs` writes a record for each stage, and for each backend where stages differ by it; dvc.yaml names these records
and no modules. The code of a stage is all that it imports, directly or not, of Assay; comments and docstrings do not
count. A stage of one backend follows no other's code, and of its own only what the methods that it calls import.
"""

import ast
import functools
import importlib.metadata
import io
import json
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pipeline
from pipeline import architectures, digests, paths
from pipeline.engines import ENGINES
from pipeline.images import assemble
from pipeline.records import Code

STAGES = ("checkpoint", "corpus", "reference", "answers", "selection", "engine", "image", "verification", "outcome")
"""Stages that every artifact shares."""

METHODS: Mapping[str, frozenset[str]] = {
    "artifact": frozenset({"refusal", "lacks", "requirements", "estimate", "build", "inspect"}),
    "quality": frozenset({"open"}),
    "tasks": frozenset({"open"}),
    "latency": frozenset({"open"}),
}
"""Stages of one artifact, and the methods of its backend that they call."""

STARTED: Mapping[str, tuple[str, ...]] = {"latency": ("containers.gateway.__main__", "containers.engines.worker")}
"""Modules that a stage runs in processes of their own."""

WITHOUT_EFFECT = frozenset({
    "pipeline.activity", "pipeline.architectures", "pipeline.checkpoints.libraries", "pipeline.endings",
    "pipeline.errors", "pipeline.hub_errors", "pipeline.progress", "pipeline.relay", "pipeline.supervision",
})  # fmt: skip
"""Modules that shape no output: what they say goes to the terminal. Of pipeline.architectures, which has tables of all
tools, a stage needs its own tools' alone, whose versions count, and its backend's findings."""

TYPES = ("pipeline.params", "pipeline.records")
"""Modules that count for themselves, and whose own imports do not: of these they need the types alone. DVC holds the
values of params.yaml against those of the last run by itself."""

PACKAGES = ("pipeline", "evals", "containers")
BACKENDS, ENGINES_CODE = "pipeline.backends.", "containers.engines."

IMAGE = "image"
"""The folder of an engine with what its image is built from, which shapes the image and nothing else."""

DATA: Mapping[str, tuple[str, ...]] = {
    "evals.harness": ("evals/tasks",),
    "pipeline.backends.tensorrt_llm.place": ("containers/images.toml",),
    "pipeline.images.engine": tuple(f"containers/engines/{engine}/{IMAGE}" for engine in ENGINES),
    "pipeline.images.manifest": ("containers/images.toml",),
    "pipeline.sizing.hardware": ("pipeline/hardware.toml",),
}
"""Files and folders that a module reads which do not lie in its own package; those that do are found by themselves."""

OWN: Mapping[str, Path] = {"pipeline.harness": paths.TASKS}
"""Folders of the project that a module reads; in Assay's own repository some are the packages' own."""

PACKED = "image"
"""The stage that puts the code itself into what it writes: every file counts there, comments included."""

TOOLS: Mapping[str, str] = {
    "accelerate": "accelerate", "aiohttp": "aiohttp", "datasets": "datasets", "fastapi": "fastapi", "gguf": "gguf",
    "gptqmodel": "gptqmodel",
    "jinja2": "jinja2", "lm_eval": "lm-eval", "numpy": "numpy", "onnx": "onnx", "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime", "onnxruntime_genai": "onnxruntime-genai", "optimum": "optimum",
    "pyarrow": "pyarrow", "safetensors": "safetensors", "scipy": "scipy", "sentencepiece": "sentencepiece",
    "starlette": "starlette", "tokenizers": "tokenizers", "torch": "torch", "transformers": "transformers",
    "uvicorn": "uvicorn", "uvloop": "uvloop", "vl_convert": "vl-convert-python",
}  # fmt: skip
"""Packages whose version can change what a stage writes: the name that is imported, and the distribution's."""

PLAIN = frozenset({
    "dvc", "dvc_data", "grimp", "httpx2", "huggingface_hub", "llama_cpp", "markupsafe", "modelopt", "packaging",
    "prometheus_client", "pydantic", "pydantic_settings", "pynvml", "rich", "ruamel", "scmrepo", "shtab",
    "tensorrt_llm", "threadpoolctl", "tqdm", "yaml",
})  # fmt: skip
"""Packages that cannot, or whose version stands in a file: llama.cpp's in its pin, TensorRT-LLM's in requirements."""

CALLED: Mapping[str, tuple[str, ...]] = {
    "pipeline.backends.gguf.source": ("gguf", "sentencepiece", "torch", "transformers"),
    "pipeline.backends.onnx.build": ("onnx_ir", "onnxruntime_genai", "torch", "transformers"),
    "pipeline.backends.common.gptqmodel_child": ("tokenizers", "torch", "transformers"),
    "pipeline.backends.common.packed_linear": ("accelerate", "gptqmodel", "optimum"),
    "pipeline.backends.common.causal_lm": ("tokenizers", "transformers"),
    "pipeline.checkpoints.tokenizer": ("sentencepiece", "tokenizers"),
    "containers.gateway.__main__": ("uvloop",),
}
"""What a module needs of packages that it does not import itself: of programs that it starts, or behind another one."""

CACHE = Path(".assay/cache")

CODE = frozenset({".py", ".pyc"})


def records(backends: Collection[str]) -> Iterator[Code]:
    """Yield the record of every stage, those of single artifacts for each of these backends."""
    imports = _Imports()
    for stage in STAGES:
        yield _record(stage, imports, imports.reached(stage, None))
    for stage in METHODS:
        for backend in sorted(set(backends)):
            found = _record(f"{stage}-{backend}", imports, imports.reached(stage, backend))
            findings = architectures.FINDINGS / f"{backend}.toml"
            if "refusal" in METHODS[stage] and findings.exists():
                found = found.model_copy(update={"data": found.data | _digests([findings], _root())})
            yield found
    imports.save()


def _record(name: str, imports: "_Imports", reached: set[str]) -> Code:
    ours = sorted(filter(_ours, reached))
    others = {module for module in reached if not _ours(module)}
    others |= {tool for module in ours for tool in CALLED.get(module, ())}
    data = {path: digest for module in ours for path, digest in imports.data(module).items()}
    return Code(
        name=name,
        modules={module: imports.digest(module) for module in ours},
        data=data | (_digests(assemble.code_files(_root()), _root()) if name == PACKED else {}),
        tools={tool: version for one in sorted(others) if (tool := TOOLS.get(one)) and (version := _version(tool))},
    )


def _ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


@functools.cache
def _version(distribution: str) -> str | None:
    """Return a distribution's version, without the part that tells for which hardware it was built."""
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


class _Imports:
    """Who imports whom, and the digests of their code."""

    def __init__(self) -> None:
        import grimp

        self._graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=str(CACHE / "imports"))
        self._memo = _read(CACHE / "code.json")
        self._used: dict[str, str] = {}
        self._direct: dict[str, frozenset[str]] = {}
        self._digests: dict[str, str] = {}
        self._data: dict[Path, dict[str, str]] = {}

    def reached(self, stage: str, backend: str | None) -> set[str]:
        """Return the modules that a stage imports, directly or not, itself among them."""
        waiting, found = [f"pipeline.stages.{stage}", *STARTED.get(stage, ())], set[str]()
        methods = METHODS.get(stage, frozenset())
        if backend is not None:
            waiting.append(f"{BACKENDS}{backend}.backend")
        while waiting:
            module = waiting.pop()
            if module in found or module in WITHOUT_EFFECT or _foreign(module, backend):
                continue
            found.add(module)
            imported = self._imported(module, methods)
            waiting += (one for one in imported if one.startswith(TYPES) or not module.startswith(TYPES))
        return found

    def _imported(self, module: str, methods: frozenset[str]) -> frozenset[str]:
        """Return what a module imports; of a backend only what it imports always, and inside these methods."""
        if module not in self._direct:
            self._direct[module] = frozenset(self._graph.find_modules_directly_imported_by(module))
        if not _is_backend(module):
            return self._direct[module]
        skipped = _skipped_lines(_path(module), methods)
        return frozenset(one for one in self._direct[module] if not self._lines(module, one) <= skipped)

    def _lines(self, module: str, imported: str) -> set[int]:
        return {one["line_number"] for one in self._graph.get_import_details(importer=module, imported=imported)}

    def digest(self, module: str) -> str:
        """Return the beginning of the digest of a module's code, comments and docstrings left out."""
        if module not in self._digests:
            path = _path(module)
            raw = digests.of_file(path)
            self._used[raw] = self._memo.get(raw) or digests.of_text(code(path.read_text(encoding="utf-8")))
            self._digests[module] = self._used[raw][:16]
        return self._digests[module]

    def data(self, module: str) -> dict[str, str]:
        """Return beginnings of the digests of the files beside code that a module reads, by path."""
        folder = _path(module).parent
        found: dict[str, str] = {}
        for place in DATA.get(module, ()):
            found |= self._files(_root() / place, _root())
        if module in OWN and OWN[module].is_dir():
            found |= self._files(OWN[module].resolve(), Path.cwd())
        # What lies beside the packages themselves is read by the modules that DATA names.
        return found if folder.parent == _root() else found | self._files(folder, _root())

    def _files(self, place: Path, base: Path) -> dict[str, str]:
        """Digest a file, or the files of a folder that are no code and of no package below."""
        if place not in self._data:
            kept = place.iterdir() if place.is_dir() else ()
            inside = [one for one in kept if not (one / "__init__.py").exists() and one.name != IMAGE]
            below = [file for one in inside if one.is_dir() for file in one.rglob("*")]
            files = sorted(one for one in (place, *inside, *below) if one.is_file() and one.suffix not in CODE)
            self._data[place] = _digests(files, base)
        return self._data[place]

    def save(self) -> None:
        """Keep the digests of code for the next time."""
        if self._used != self._memo:
            CACHE.mkdir(parents=True, exist_ok=True)
            partial = CACHE / "code.json.partial"
            partial.write_text(json.dumps(self._used), encoding="utf-8")
            partial.replace(CACHE / "code.json")


@functools.cache
def _root() -> Path:
    """Return the folder that holds the packages: the repository, or where they are installed."""
    return Path(pipeline.__path__[0]).resolve().parent


def _digests(files: Iterable[Path], base: Path) -> dict[str, str]:
    """Return the beginnings of the digests of files, by their paths from `base`."""
    return {one.relative_to(base).as_posix(): digests.of_file(one)[:16] for one in files}


def _path(module: str) -> Path:
    """Return a module's file."""
    path = _root() / module.replace(".", "/")
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _is_backend(module: str) -> bool:
    return module.startswith(BACKENDS) and module.endswith(".backend")


def _foreign(module: str, backend: str | None) -> bool:
    """Tell whether a module is another backend's, or of an engine that does not serve this one's artifacts.

    A stage without a backend follows what it imports itself, and none by way of params.yaml, which all stages read.
    """
    if backend is None:
        return _is_backend(module)
    if module.startswith(BACKENDS):
        return module.removeprefix(BACKENDS).partition(".")[0] not in (backend, "common", "contract")
    if module.startswith(ENGINES_CODE):
        owner = module.removeprefix(ENGINES_CODE).partition(".")[0]
        return any(name == owner and backend not in engine.backends for name, engine in ENGINES.items())
    return False


@functools.cache
def _skipped_lines(path: Path, methods: frozenset[str]) -> frozenset[int]:
    """Return the lines of a backend's methods that are not called."""
    found: set[int] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and method.name not in methods and not method.name.startswith("_"):
                found |= set(range(method.lineno, (method.end_lineno or method.lineno) + 1))
    return frozenset(found)


def code(text: str) -> str:
    """Return Python source without comments, docstrings and empty lines; the same in every version of Python."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
