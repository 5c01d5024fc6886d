"""The registry: one closed union of recipes. A new backend has the interface of contract.py and one more name here."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from pipeline.backends.awq.recipe import Awq
from pipeline.backends.gguf.recipe import Gguf
from pipeline.backends.gptq.recipe import Gptq
from pipeline.backends.onnx.recipe import Onnx
from pipeline.backends.safetensors.recipe import Safetensors
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlm

Recipes: TypeAlias = Gguf | Gptq | Awq | Onnx | Safetensors | TensorRtLlm

AnyRecipe: TypeAlias = Annotated[Recipes, Field(discriminator="backend")]

if TYPE_CHECKING:
    from pipeline.backends.contract import Recipe

    def _every_recipe_has_the_interface(recipe: Recipes) -> Recipe:
        return recipe
