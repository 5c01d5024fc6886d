"""What a TensorRT-LLM artifact takes, from shapes alone: as inspected after a build, and as planned before one."""

from pipeline.backends.common import stored
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import Estimate, Load, Making, Runtime, assemble
from pipeline.sizing.model import EMBEDDINGS, Model, Weight

WEIGHT_BITS = {"bf16": 16, "fp8": 8, "int8_wo": 8, "int4_wo": 4, "int4_awq": 4, "w4a16_gptq": 4}
GROUPED = ("int4_awq", "w4a16_gptq")

SCALE_BITS = 32
"""Bits of each group, at most: a scale, and a zero point as a number of the same type."""

PLAN_BYTES = 64 * 2**20
"""Bytes of an engine beside its weights: kernels and tables, which do not grow with the model."""

PROCESS_BYTES = 4_000_000_000
"""Main memory that is taken by processes with torch for CUDA, TensorRT and MPI. From documentation, not measured
here."""


def bits(recipe: TensorRtLlmRecipe, weight: Weight) -> tuple[float, float]:
    """Return the least and the most bits for one of the checkpoint's tensors.

    At most: scales for each group, and an embedding twice, as head of its own although the checkpoint ties them.
    """
    if not stored.is_layer_matrix(weight):
        least = 16.0 * weight.parameters
        return least, 2 * least if weight.name.endswith(EMBEDDINGS) else least
    least = float(weight.parameters * WEIGHT_BITS[recipe.quantization])
    group = recipe.group_size if recipe.quantization in GROUPED else 256
    return least, least + weight.parameters * SCALE_BITS / group


def estimate(recipe: TensorRtLlmRecipe, model: Model, load: Load) -> Estimate:
    """See Backend.estimate."""

    def of(weight: Weight) -> float:
        least, most = bits(recipe, weight)
        return most if stored.is_layer_matrix(weight) or model.tied else least

    plan = PLAN_BYTES * recipe.tensor_parallel if recipe.mode == "engine" else 0
    return assemble(
        model,
        load,
        bits=of,
        other_bytes=model.companion_bytes + plan,
        runtime=Runtime(
            use=Use(bits=16 if recipe.kv_cache == "auto" else 8),
            process_bytes=PROCESS_BYTES,
            # Activations of the largest pass that the engine was compiled for.
            work_bytes=2 * recipe.max_num_tokens * (4 * model.hidden + 2 * model.inner),
        ),
        # The converter holds the weights, and trtllm-build those of the converted checkpoint, which is on disk as well.
        making=Making(anonymous_bytes=PROCESS_BYTES + 2 * model.bytes, disk_bytes=2 * model.bytes),
    )
