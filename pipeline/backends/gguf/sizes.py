"""What a GGUF artifact will take: its tensors by the mixture's rules, and llama-server around them."""

from collections import Counter

from pipeline.backends.gguf import mixture
from pipeline.backends.gguf.recipe import GgufRecipe
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import Estimate, Load, Making, Runtime, assemble
from pipeline.sizing.model import Model, Weight

REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "Q2_K"})
"""Types whose matrices llama.cpp copies, interleaved for vector instructions (AVX2, and AVX-512 for Q2_K), beside the
mapped file. A table that is only looked up stays as it is."""

SERVER_BYTES = 30_000_000
"""llama-server and its libraries without a model: 31 MB resident on x86-64, b6200s of llama.cpp."""

TOKEN_BYTES, MERGE_BYTES = 23, 17
"""A token in the file: length, a few letters, type and score; and a merge of byte-pair encoding, one a token."""

BATCH_TOKENS = 512
"""Tokens of a prompt that go through the model at once."""

CONVERTER_BYTES = 370_000_000
"""The converter's interpreter with torch, whose weights are mapped and written one by one."""


def estimate(recipe: GgufRecipe, model: Model, load: Load) -> Estimate:
    """See Backend.estimate."""
    sizes: Counter[Weight] = Counter()
    repacked = largest = 0
    for piece, kind in mixture.types(recipe, model):
        size = mixture.bytes_of(piece, kind)
        sizes[piece.weight] += size
        repacked += size if kind in REPACKED and piece.role not in ("embedding", "small") else 0
        largest = max(largest, piece.rows * piece.columns)
    per_token = TOKEN_BYTES if model.text.get("model_type") in ("llama", "mistral", "gemma", "gemma2") else 0
    tokens = per_token or TOKEN_BYTES + MERGE_BYTES
    work = min(BATCH_TOKENS, load.filled_tokens * load.streams) * 4 * (4 * model.hidden + 2 * model.inner)
    return assemble(
        model,
        load,
        bits=lambda weight: 8 * sizes[weight],
        other_bytes=tokens * model.vocabulary_size,
        runtime=Runtime(
            use=Use(bits=16, windows=model.text.get("model_type") not in ("mistral",), whole=True),
            process_bytes=SERVER_BYTES,
            work_bytes=work + 4 * load.streams * model.vocabulary_size,
            copied_bytes=repacked,
        ),
        making=Making(
            # One tensor in float32 and as it goes out; the importance matrix runs the model from the mapped file.
            anonymous_bytes=CONVERTER_BYTES + 6 * largest,
            mapped_bytes=model.bytes,
            disk_bytes=model.bytes,
        ),
    )
