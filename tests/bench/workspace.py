"""What the benchmarks share: a clone to work in, a random checkpoint, running and timing, a row of the result."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable

Row = tuple[str, str, str, str]
"""What, measured, limit, verdict."""


def workspace(folder: Path, artifacts: Sequence[str] | None = None) -> Path:
    """Make a repository of its own from this one's tracked files."""
    run(["git", "clone", "-q", ROOT, folder], cwd=ROOT)
    if artifacts:
        params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
        params["artifacts"] = {name: params["artifacts"][name] for name in artifacts}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def random_checkpoint(
    tokenizer: Path,
    out: Path,
    device: str = "cpu",
    /,
    *,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    vocabulary: int | None = None,
    context: int = 1024,
) -> None:
    """Write random bfloat16 weights with the demo's tokenizer, in shapes that fit K-quants and groups of 128.

    `device` draws them: billions take a minute of a core, and a second of a GPU, where they are others.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary or json.loads((tokenizer / "config.json").read_text())["vocab_size"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(out, max_shard_size="1GB")
    for path in tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, out)


def run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> int:
    """Run to the end, or stop the benchmark; return the peak resident memory of the process in bytes."""
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output[-3000:]}")
    return usage.ru_maxrss * 1024


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(
    what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None, prefix: str = ""
) -> Row:
    """Hold a figure against its limit."""
    if at_most is not None:
        return what, f"{prefix}{measured:.2f}", f"at most {at_most:g}", "ok" if measured <= at_most else "over"
    if at_least is not None:
        return what, f"{prefix}{measured:.2f}", f"at least {at_least:g}", "ok" if measured >= at_least else "under"
    return what, f"{prefix}{measured:.2f}", "", ""
