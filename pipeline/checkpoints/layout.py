"""Which files of a repository or folder are the checkpoint, and which weights it consists of."""

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import CheckpointError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "NOTICE*",
)
"""What is taken beside config.json and weights. The model card is left out: mending its prose must rebuild nothing."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")


def side_files(names: Collection[str]) -> tuple[str, ...]:
    """Return the tokenizer's files and their like among `names`, the index included when there is one."""
    top = (name for name in names if "/" not in name)
    wanted = {name for name in top if any(fnmatchcase(name, pattern) for pattern in SIDE_FILES)}
    return tuple(sorted(wanted | ({INDEX} & set(names))))


def require_safetensors(names: Collection[str], source: str) -> None:
    """Refuse names among which no complete set of safetensors weights can be."""
    if CONFIG not in names:
        adapter = "adapter_config.json" in names
        raise CheckpointError(
            f"{source}: has no {CONFIG}"
            + (", but an adapter_config.json: it is an adapter, merge it into its base model first" if adapter else "")
            + ("" if adapter else "; expected a Hugging Face checkpoint (config.json, tokenizer, safetensors weights)")
        )
    single, index = SINGLE in names, INDEX in names
    if single and index:
        raise CheckpointError(
            f"{source}: has both {SINGLE} and {INDEX}, and tools differ in which one they load; remove one of them"
        )
    if single or index:
        return
    shards = sorted(name for name in names if fnmatchcase(name, "model*.safetensors"))
    if shards:
        raise CheckpointError(f"{source}: has {shards[0]} but no {INDEX} that names all shards; get the index as well")
    weights = set(names) - {"training_args.bin", "optimizer.pt", "scheduler.pt"}
    pickles = sorted(name for name in weights if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    if pickles:
        raise CheckpointError(
            f"{source}: has its weights only as {pickles[0]}"
            + (f" and {len(pickles) - 1} more" if len(pickles) > 1 else "")
            + ", a pickle, which can run any code when it is opened; "
            "ask its author for safetensors, or convert it where running its code does no harm"
        )
    raise CheckpointError(f"{source}: has no weights; expected {SINGLE}, or shards with {INDEX}")


def weight_map(folder: Path, names: Collection[str], source: str) -> dict[str, str] | None:
    """Return tensor name to shard as the index says, or None for a single file. Refuses shards that are not there."""
    if INDEX not in names:
        return None
    found = read_json(folder / INDEX, source).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise CheckpointError(f"{source}: {INDEX} has no weight_map from tensor names to shards; download it again")
    shards = sorted(set(found.values()))
    for shard in shards:
        if shard != PurePosixPath(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{source}: {INDEX} names {shard!r} as a shard; expected a .safetensors file in the same folder"
            )
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} of {len(shards)} shards named in {INDEX} are missing, the first is "
            f"{missing[0]}; download it again"
        )
    return found


def read_json(path: Path, source: str) -> dict[str, Any]:
    """Read one of the checkpoint's JSON files; CheckpointError says where it is broken."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{source}: {path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{source}: {path.name} is not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {path.name} holds {type(value).__name__}, expected an object")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config: nested in models that also see or hear."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config
