"""An ONNX folder in a worker: its Runner and its slots share one session."""

from pathlib import Path

import onnx

from containers.engines.contract import Facts
from containers.engines.onnxruntime.growing import GrowingSlots
from containers.engines.onnxruntime.slots import OnnxSlots
from containers.engines.slots import Slots
from containers.engines.text import Text
from pipeline.backends.onnx.decoder import Decoder
from pipeline.backends.onnx.run import OnnxRunner


class OnnxModel:
    """A loaded ONNX artifact."""

    def __init__(self, artifact: Path, runner: OnnxRunner, slots: int, context_tokens: int) -> None:
        decoder = runner.decoder
        self.runner = runner
        self.text = Text(artifact)
        self.slots: Slots
        if isinstance(decoder, Decoder):
            capacity = min(context_tokens, _longest(artifact, decoder))
            self.slots = OnnxSlots(decoder, slots, capacity)
        else:
            capacity = min(context_tokens, decoder.context_tokens)
            self.slots = GrowingSlots(decoder, slots)
        known = () if self.text.eos_id is None else (self.text.eos_id,)
        eos_ids = (*decoder.eos_ids, *known)
        self.eos_ids = frozenset(eos_ids)
        self.facts = Facts(
            runtime=runner.settings["runtime"],
            context_tokens=capacity,
            vocabulary_size=decoder.vocabulary_size,
            bos_id=self.text.bos_id,  # genai_config.json has one even where the checkpoint has none
            eos_id=self.text.eos_id if self.text.eos_id in self.eos_ids else next(iter(eos_ids), None),
            slots=slots,
            schemas=False,
        )

    def piece(self, id_: int) -> str:
        """Return a token's text."""
        return self.text.piece(id_)


def model(artifact: Path, runner: OnnxRunner, *, slots: int, context_tokens: int) -> OnnxModel:
    """Describe a loaded artifact, and give it slots."""
    return OnnxModel(artifact, runner, slots, context_tokens)


def _longest(artifact: Path, decoder: Decoder) -> int:
    """Return how long a sequence may get.

    LongRoPE turns all rows of a pass by other angles once one of them is longer than the original context: short ones
    would change with what runs beside them, so slots stay below.
    """
    nodes = onnx.load(str(artifact / "model.onnx"), load_external_data=False).graph.node
    for node in nodes:
        if node.op_type == "If" and "cos_cache" in node.output:
            branches = {one.name: one.g for one in node.attribute}
            small = branches["else_branch"].node[0].attribute[0].t
            return int(small.dims[0])
    return decoder.context_tokens
