"""Answers for logits and greedy tokens where TensorRT-LLM is installed: `python3 score.py JOB`, over stdin and stdout.

A question is a line of JSON. An answer is a line of JSON, and behind {"rows": r, "columns": c} come r x c float32. The
first line of ours is MAGIC: an image's entry point greets on stdout. Nothing of this repository can be imported here.
"""

import json
import os
import sys
from typing import Any, BinaryIO

MAGIC = b"assay-wire\n"
PIECE_ROWS = 256


class Model:
    """One loaded artifact."""

    def __init__(self, job: dict[str, Any]) -> None:
        import tensorrt_llm

        if tensorrt_llm.__version__ != job["version"] and job["mode"] == "engine":
            raise RuntimeError(f"this is TensorRT-LLM {tensorrt_llm.__version__}, and {job['version']} is asked for")
        self.version = tensorrt_llm.__version__
        self.columns = job["vocabulary"]
        self.llm = _engine(job) if job["mode"] == "engine" else _checkpoint(job)

    def logits(self, wire: BinaryIO, prompts: list[list[int]], skips: list[int]) -> None:
        """Send each prompt's logits, without its first `skip` rows."""
        outputs = self.llm.generate(prompts, _sampling(1, return_context_logits=True), use_tqdm=False)
        for ids, skip, output in zip(prompts, skips, outputs):  # noqa: B905 (Python 3.10 there, and one length each)
            found = output.context_logits
            if found is None or len(found) != len(ids):
                got = "none" if found is None else str(len(found))
                raise RuntimeError(f"context logits for {len(ids)} tokens were asked for, and {got} came")
            rows = found[skip:, : self.columns]
            send(wire, {"rows": rows.shape[0], "columns": rows.shape[1]})
            for start in range(0, rows.shape[0], PIECE_ROWS):
                wire.write(rows[start : start + PIECE_ROWS].float().cpu().contiguous().numpy().tobytes())
        wire.flush()

    def generate(self, wire: BinaryIO, ids: list[int], tokens: int) -> None:
        """Send each greedy token as it comes."""
        sent = 0
        for output in self.llm.generate_async(ids, sampling_params=_sampling(tokens), streaming=True):
            made = output.outputs[0].token_ids
            for token in made[sent:]:
                send(wire, {"token": int(token)})
            sent = len(made)
        send(wire, {"end": True})


def _engine(job: dict[str, Any]) -> Any:
    from tensorrt_llm._tensorrt_engine import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    return LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        tensor_parallel_size=job["tensor_parallel"],
        # With reuse, logits of a prompt's known beginning would not be made, and the others differ in their last bits.
        kv_cache_config=KvCacheConfig(enable_block_reuse=False),
    )


def _checkpoint(job: dict[str, Any]) -> Any:
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    return LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        tensor_parallel_size=job["tensor_parallel"],
        max_batch_size=job["max_batch_size"],
        max_num_tokens=job["max_num_tokens"],
        max_seq_len=job["max_sequence_tokens"],
        kv_cache_config=KvCacheConfig(enable_block_reuse=False, dtype=job["kv_cache"]),
    )


def _sampling(tokens: int, return_context_logits: bool = False) -> Any:
    from tensorrt_llm import SamplingParams

    return SamplingParams(
        max_tokens=tokens,
        end_id=0,
        pad_id=0,
        top_k=1,
        ignore_eos=True,
        detokenize=False,
        return_context_logits=return_context_logits,
    )


def send(wire: BinaryIO, message: dict[str, Any]) -> None:
    """Write one line."""
    wire.write(json.dumps(message).encode() + b"\n")
    wire.flush()


def main(path: str) -> None:
    """Load the artifact and answer until stdin ends."""
    wire = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints from here on, in this process or in a child, goes to stderr
    with open(path, encoding="utf-8") as stream:  # noqa: PTH123
        job = json.load(stream)
    model = Model(job)
    wire.write(MAGIC)
    send(wire, {"version": model.version})
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            if "logits" in asked:
                model.logits(wire, asked["logits"], asked["skip"])
            else:
                model.generate(wire, asked["generate"], asked["tokens"])
        except Exception as error:  # every library below has its own; the other end raises it
            send(wire, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":  # workers of several GPUs import this file again
    main(sys.argv[1])
