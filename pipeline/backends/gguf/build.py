"""Building a GGUF artifact: one conversion that loses nothing, then llama-quantize to every type, F16 included."""

import importlib.metadata
import re
from collections import Counter
from pathlib import Path

from pipeline import processes
from pipeline.backends.contract import Built
from pipeline.backends.gguf import source
from pipeline.backends.gguf.recipe import GgufRecipe
from pipeline.compute import Compute
from pipeline.errors import BuildError
from pipeline.toolchains import llama_cpp

INVALID = "quantized data validation failed"
"""What llama-quantize says of a tensor in which it wrote NaN or infinity."""

FLOAT16_MAX = 65504.0

TENSORS = processes.count(r"\[ *(\d+)/ *(\d+)\]")
"""How llama-quantize numbers its lines."""


def build(recipe: GgufRecipe, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
    """Write the one GGUF file. Raises BuildError with the failing tool's last lines.

    llama-quantize writes the name of the importance matrix into the file, so it runs in that matrix's folder, under
    a name that is always the same.
    """
    toolchain = llama_cpp.find()
    target = out.resolve() / recipe.file_name
    with source.converted(toolchain, checkpoint) as folder:
        command: list[str | Path] = [toolchain.tool("llama-quantize")]
        work = folder
        if recipe.weighted:
            matrix = source.importance(toolchain, folder, corpus, compute)
            work = matrix.parent
            command += ["--imatrix", matrix.name]
        command += [folder / source.HEADER, target, recipe.quantization, str(compute.threads)]
        try:
            output = processes.run(command, what=f"llama-quantize {recipe.quantization}", cwd=work, progress=TENSORS)
        except BuildError as error:
            if INVALID in str(error) and (beyond := _beyond_float16(folder / source.TENSORS)) is not None:
                name, value = beyond
                raise BuildError(
                    f"{recipe.quantization} cannot hold {name}, whose largest value is {value:g}: float16 ends at "
                    f"{FLOAT16_MAX:g}; use BF16, or Q8_0, whose scales reach further"
                ) from error
            raise
    if not target.exists():
        raise BuildError(f"llama-quantize {recipe.quantization} ended well but wrote no {target.name}")
    tools = {"llama-cpp-python": toolchain.version, "transformers": importlib.metadata.version("transformers")}
    return Built(tools=tools, notes=notes(output))


def _beyond_float16(model: Path) -> tuple[str, float] | None:
    """Return the tensor with the largest value, and that value, if float16 has none so large."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {}
    for tensor in GGUFReader(model).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = float(max(values.max(), -values.min()))
    name = max(found, key=found.__getitem__)
    return (name, found[name]) if found[name] > FLOAT16_MAX else None


def notes(output: str) -> tuple[str, ...]:
    """Read out of llama-quantize's lines what it did other than asked: fallbacks, and tensors quantized unweighted."""
    found = []
    changes = Counter(re.findall(r"required for type +(\S+)\).*?-> falling back to +(\S+)", output))
    if total := re.search(r"(\d+) of (\d+) tensor\(s\) required fallback", output):
        kinds = ", ".join(f"{count} from {asked} to {used}" for (asked, used), count in sorted(changes.items()))
        found.append(
            f"{total[1]} of {total[2]} tensors fell back to another type, because their rows are no multiple of the "
            f"block size: {kinds}"
        )
    missed = set(re.findall(r"did not find weights for (\S+)", output)) - {"token_embd.weight", "output.weight"}
    if missed:
        found.append(f"{len(missed)} tensors had no importance data and were rounded unweighted: {min(missed)} ...")
    return tuple(found)
