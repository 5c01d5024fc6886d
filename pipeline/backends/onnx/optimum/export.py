"""Runs in the environment of requirements.txt: optimum-onnx turns a checkpoint into one graph with a key-value cache.

Nothing of the repository can be imported here.
"""

import json
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"
POSITIONS = {0: "batch_size", 1: "sequence_length"}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Export `checkpoint` into the empty folder `out`, in float32; without `out`, tell what can be exported."""
    warnings.simplefilter("ignore")  # of the tracer, about each Python value in a branch
    return _export(Path(job["checkpoint"]), Path(job["out"])) if "out" in job else _architectures()


def _export(checkpoint: Path, out: Path) -> dict[str, Any]:
    import torch
    from optimum.exporters.onnx.convert import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoModelForCausalLM

    _step(1)
    folder = out / "checkpoint"
    _lay_out(checkpoint, folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, info[what])):
            raise ValueError(f"{len(names)} {what.replace('_', ' ')}, {names[0]} the first: the weights do not fit")
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model=model, task=TASK, library_name="transformers"
    )
    if "position_ids" in signature(model.forward).parameters and not getattr(model.config, "alibi", False):
        _take_positions(constructor.func)
    _step(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the example that is traced
        onnx_export_from_model(model, out, task=TASK, do_validation=False, no_post_process=True)
    _step(3)
    return {}


def _lay_out(checkpoint: Path, folder: Path) -> None:
    """Link the weights, and write config.json in the words of this transformers.

    From release 5 on all of RoPE is in `rope_parameters`; this one would pass over it and take its defaults.
    """
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {}
    local = rope.get("sliding_attention")
    if local is not None:
        config["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    for key, of_gpt_neox in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if key in rope:
            config |= {key: rope[key], of_gpt_neox: rope[key]}
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in checkpoint.glob("*.safetensors*"):
        (folder / path.name).symlink_to(path.resolve())


def _take_positions(config: Any) -> None:
    """Have the graph take positions as an input where the exporter leaves them to the model.

    It would count them from the left end of the cache, padding included, and sequences in one batch could not differ in
    length.
    """
    theirs = config.inputs.fget
    config.inputs = property(lambda self: {**theirs(self), "position_ids": POSITIONS})


def _architectures() -> dict[str, str]:
    """Map each architecture to its model type: decoders that transformers has itself."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 (fills the table)
    from optimum.exporters.tasks import TasksManager
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = {}
    for model_type, exporters in TasksManager._SUPPORTED_MODEL_TYPE.items():
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        known = TASK in exporters.get("onnx", {}) and architecture is not None
        if known and not CONFIG_MAPPING[model_type]().is_encoder_decoder:
            found[architecture] = model_type
    return dict(sorted(found.items()))


def _step(number: int) -> None:
    print(f"step {number} of 3", flush=True)  # noqa: T201 (the way to the parent)
