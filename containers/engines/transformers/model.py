"""A GPTQ, AWQ or unquantized artifact that transformers has loaded, for the worker."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from containers.engines.contract import Facts
from containers.engines.text import Text
from containers.engines.transformers.slots import TransformersSlots
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.checkpoints import config as checkpoint_config


class TransformersModel:
    """See containers.engines.worker.Model."""

    def __init__(self, artifact: Path, runner: CausalLMRunner, slots: int, context_tokens: int) -> None:
        model = runner.served()
        config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
        self.runner = runner
        self.slots = TransformersSlots(runner, slots)
        self.text = Text(artifact)
        self.piece = self.text.piece
        known = () if self.text.eos_id is None else (self.text.eos_id,)
        ends = (*checkpoint_config.eos_ids(config, artifact, str(artifact)), *known)
        self.eos_ids = frozenset(ends)
        self.facts = Facts(
            runtime=_runtime(model, runner),
            context_tokens=min(context_tokens, checkpoint_config.context_tokens(config, artifact, str(artifact))),
            vocabulary_size=model.config.get_text_config().vocab_size,
            bos_id=self.text.bos_id,
            eos_id=ends[0] if ends else None,
            slots=slots,
            schemas=False,
        )


def model(artifact: Path, runner: CausalLMRunner, *, slots: int, context_tokens: int) -> TransformersModel:
    """Describe a loaded artifact, and give it slots."""
    return TransformersModel(artifact, runner, slots, context_tokens)


def _runtime(model: Any, runner: CausalLMRunner) -> str:
    """Name the libraries, and GPTQModel's kernels that stand in for linear layers where weights are packed."""
    if getattr(model.config, "quantization_config", None) is None:
        return str(runner.settings["runtime"])
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    kernels = {type(module).__name__ for module in model.modules() if isinstance(module, BaseQuantLinear)}
    return f"{runner.settings['runtime']}, gptqmodel {version('gptqmodel')} ({', '.join(sorted(kernels))})"
