"""Reading a GGUF artifact back: tensors through gguf-py, vocabulary through llama.cpp itself."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gguf import GGUFReader, ReaderTensor, quants

from pipeline import processes
from pipeline.backends.contract import Contents, Render, Tensor, Tokenizer
from pipeline.backends.gguf import library, server, tokenizer
from pipeline.backends.gguf.recipe import GgufRecipe
from pipeline.checkpoints.weights import read_header
from pipeline.errors import BuildError
from pipeline.toolchains import llama_cpp

SLICE_ELEMENTS = 2**25
"""About 128 MiB of float32 at once; an embedding of 150,000 x 8192 would be 4.9 GB."""

INTEGERS = frozenset({"I8", "I16", "I32", "I64"})

UNCERTAINTY = 0.01
"""Relative slack of the expected size."""

UNCERTAINTY_WEIGHTED = 0.08
"""Slack for types whose mixture depends on whether an importance matrix is given, which the dry run is not."""

MIXTURE_DEPENDS_ON_IMATRIX = frozenset({"Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS"})


@contextmanager
def contents(recipe: GgufRecipe, artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open the file for the structural checks; BuildError when it cannot be read as GGUF."""
    path = artifact / recipe.file_name
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise BuildError(f"{path}: cannot be read back as GGUF: {error}") from error
    files = sorted(checkpoint.glob("*.safetensors"))
    parameters = sum(entry.parameters for file in files for entry in read_header(file, file.name))
    stored = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    low, high = _expected_bytes(recipe, path)
    with (
        library.model(path, vocabulary_only=True) as model,
        tokenizer.encoder(path) as encode,
        server.renderer(path) as render,
    ):
        yield Contents(
            tensors=_tensors(reader),
            bits_per_weight=8 * stored / parameters,
            expected_bits_per_weight=(8 * low / parameters, 8 * high / parameters),
            tokenizer=_tokenizer(reader, model, encode, render),
        )


def _tensors(reader: GGUFReader) -> Iterator[Tensor]:
    for tensor in reader.tensors:
        if tensor.tensor_type.name in INTEGERS:
            yield Tensor(name=tensor.name, values=tensor.data, packed=True)
        else:
            yield from _dequantized(tensor)


def _dequantized(tensor: ReaderTensor) -> Iterator[Tensor]:
    """Yield a tensor as float32, or its rows in slices of nearly equal size where it is very large."""
    pieces = max(1, int(tensor.n_elements) // SLICE_ELEMENTS)
    if pieces == 1:
        yield Tensor(name=tensor.name, values=quants.dequantize(tensor.data, tensor.tensor_type), packed=False)
        return
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    start = 0
    for piece in np.array_split(rows, min(pieces, len(rows))):
        name = f"{tensor.name}[{start}:{start + len(piece)}]"
        yield Tensor(name=name, values=quants.dequantize(piece, tensor.tensor_type), packed=False)
        start += len(piece)


def _expected_bytes(recipe: GgufRecipe, path: Path) -> tuple[float, float]:
    """Ask llama-quantize, in a dry run on these shapes, how large the tensors of this recipe should be.

    It works from shapes and names alone, fallbacks for rows that do not fill a block included, and prints MiB with two
    decimals. So a tensor left in another type than the recipe's mixture has for it shows up as a wrong size.
    """
    tool = llama_cpp.find().tool("llama-quantize")
    output = processes.run(
        [tool, "--dry-run", path, recipe.quantization], what=f"llama-quantize --dry-run {recipe.quantization}"
    )
    found = re.search(r"quant size += +([0-9.]+) MiB", output)
    if found is None:
        raise BuildError(f"llama-quantize --dry-run {recipe.quantization} printed no size for {path}")
    size, rounding = float(found[1]) * 2**20, 0.005 * 2**20
    slack = UNCERTAINTY_WEIGHTED if recipe.quantization in MIXTURE_DEPENDS_ON_IMATRIX else UNCERTAINTY
    return size * (1 - slack) - rounding, size * (1 + slack) + rounding


def _tokenizer(reader: GGUFReader, model: object, encode: Callable[[str], list[int]], render: Render) -> Tokenizer:
    llama = library.library()
    vocabulary = llama.llama_model_get_vocab(model)
    special = {"bos": llama.llama_vocab_bos(vocabulary), "eos": llama.llama_vocab_eos(vocabulary)}
    template = reader.fields.get("tokenizer.chat_template")
    return Tokenizer(
        encode=encode,
        vocabulary_size=llama.llama_vocab_n_tokens(vocabulary),
        special_ids={name: token if token >= 0 else None for name, token in special.items()},
        adds_bos=bool(llama.llama_vocab_get_add_bos(vocabulary)),
        chat_template=None if template is None else template.contents(),
        render=render,
    )
