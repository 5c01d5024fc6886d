"""llama.cpp's bindings in a worker: they score, llama-server does everything else."""

from importlib.metadata import version

from containers.engines.contract import Facts
from pipeline.backends.gguf import library
from pipeline.backends.gguf.run import GgufRunner


class ScoredModel:
    """A loaded GGUF file."""

    def __init__(self, runner: GgufRunner) -> None:
        self.runner = runner
        self.facts = Facts(
            runtime=f"llama.cpp of llama-cpp-python {version('llama_cpp_python')}",
            context_tokens=runner.context_tokens,
            vocabulary_size=runner.vocabulary_size,
            bos_id=None,
            eos_id=None,
            slots=0,
            schemas=False,
        )
        self._pieces: dict[int, str] = {}

    def piece(self, id_: int) -> str:
        """Return a token's text."""
        if id_ not in self._pieces:
            self._pieces[id_] = library.piece(self.runner.model, id_)
        return self._pieces[id_]


def model(runner: GgufRunner) -> ScoredModel:
    """Describe a loaded file."""
    return ScoredModel(runner)
