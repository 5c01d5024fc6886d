"""Command lines of TensorRT-LLM's tools; every flag is listed, with where it was read, in flags.toml."""

from pathlib import Path

from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe

SERVING = "serving.yaml"
"""In an artifact's folder: what trtllm-serve takes from a file only."""

ENGINE = "engine"
"""In an artifact's folder: the engine's own folder, whose config.json is not the model's."""


def build(recipe: TensorRtLlmRecipe, converted: Path, engine: Path, timings: Path) -> list[str]:
    """Compile a converted checkpoint.

    Context logits are gathered so that the engine can be scored: perplexity and divergence need the whole vocabulary's
    logits at each token of a prompt, and an engine without them has them for the last token only.
    """
    command = ["trtllm-build", "--checkpoint_dir", str(converted), "--output_dir", str(engine)]
    command += ["--max_batch_size", str(recipe.max_batch_size), "--max_input_len", str(recipe.max_input_tokens)]
    command += ["--max_seq_len", str(recipe.max_sequence_tokens), "--max_num_tokens", str(recipe.max_num_tokens)]
    command += ["--max_beam_width", "1", "--kv_cache_type", "paged"]
    command += ["--gather_context_logits", "--logits_dtype", "float32"]
    return [*command, "--workers", str(recipe.tensor_parallel), "--output_timing_cache", str(timings)]


def serve(
    recipe: TensorRtLlmRecipe, artifact: Path, *, host: str, port: int, gpu_memory_fraction: float = 0.9
) -> list[str]:
    """Serve an artifact as OpenAI's API on one address, which asks for no key: only loopback will do.

    `gpu_memory_fraction` is the share that the KV cache takes of the memory that weights and buffers leave.
    """
    engine = recipe.mode == "engine"
    command = ["trtllm-serve", str(artifact / ENGINE if engine else artifact), "--tokenizer", str(artifact)]
    command += ["--backend", "tensorrt" if engine else "pytorch", "--host", host, "--port", str(port)]
    command += ["--max_batch_size", str(recipe.max_batch_size), "--max_num_tokens", str(recipe.max_num_tokens)]
    command += ["--max_seq_len", str(recipe.max_sequence_tokens), "--tp_size", str(recipe.tensor_parallel)]
    command += ["--kv_cache_free_gpu_memory_fraction", str(gpu_memory_fraction)]
    return [*command, "--extra_llm_api_options", str(artifact / SERVING), "--log_level", "warning"]


def serving(recipe: TensorRtLlmRecipe) -> str:
    """Return the file SERVING.

    Blocks of the KV cache are not shared between requests: a prompt whose beginning was seen before would go through
    other kernels, whose rounding differs, and the same request would have two answers. On the TensorRT backend the
    cache's type is the engine's, and may not be given again.
    """
    lines = ["kv_cache_config:", "  enable_block_reuse: false"]
    if recipe.mode == "checkpoint" and recipe.kv_cache != "auto":
        lines.append(f"  dtype: {recipe.kv_cache}")
    return "\n".join(lines) + "\n"
