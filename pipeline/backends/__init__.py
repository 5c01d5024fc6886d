"""The registry: one closed union of backends. A new backend has the interface of contract.py and one more name here."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from pipeline.backends.awq.backend import Awq
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.onnx.backend import Onnx
from pipeline.backends.safetensors.backend import Safetensors
from pipeline.backends.tensorrt_llm.backend import TensorRtLlm

Backends: TypeAlias = Gguf | Gptq | Awq | Onnx | Safetensors | TensorRtLlm

AnyRecipe: TypeAlias = Annotated[Backends, Field(discriminator="backend")]

if TYPE_CHECKING:
    from pipeline.backends.contract import Backend

    def _every_backend_has_the_interface(recipe: Backends) -> Backend:
        return recipe
