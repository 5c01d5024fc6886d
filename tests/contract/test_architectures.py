"""Each model family through each backend: built, read back, opened, and its logits beside the checkpoint's own.

docs/support.json says what is expected, and the README's table is made from it. A backend that refuses a family it is
said to take fails here, as does one that takes a family it is said to refuse; a backend that takes a family and then
crashes, or gives other logits, always fails. `python -m tests.support.support_table --measure` runs this file and
writes anew what it found.
"""

import json
import pydoc_data.topics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from evals.runner import Ids, Logits
from evals.windows import Windows
from pipeline.backends.awq.backend import Awq
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.contract import Backend
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.onnx.backend import Onnx
from pipeline.checkpoints.check import check
from pipeline.checkpoints.obtain import obtain
from pipeline.compute import Compute
from pipeline.errors import CheckpointError, RequirementError
from pipeline.records import Vocabulary
from pipeline.toolchains import llama_cpp
from tests.support.families import FAMILIES
from tests.support.support_table import MEASURING, PROPERTY, SUPPORT, Found, load
from tests.support.vocabularies import ByteLevel

WINDOW_TOKENS = 128
CALIBRATION_WINDOWS = 24
THREADS = 2

RECIPES: Mapping[str, tuple[tuple[Backend, float], ...]] = {
    "gguf": (
        (Gguf(backend="gguf", quantization="F16"), 0.02),
        (Gguf(backend="gguf", quantization="Q4_K_M", imatrix=False), 0.5),
    ),
    "gptq": ((Gptq(backend="gptq", bits=4), 0.5),),
    "awq": ((Awq(backend="awq", bits=4), 0.5),),
    "onnx": ((Onnx(backend="onnx", precision="fp32"), 0.01), (Onnx(backend="onnx", precision="int4"), 0.5)),
}
"""By backend, the recipes, and the largest error of each (see `error_share`)."""

EVERY_RUN = ("llama-2", "qwen-3", "granite")
"""Families that each run takes through all backends, `make nightly` the others: those with a plain Llama's layers, with
norms of query and key, and with multipliers."""

OTHERWISE: Mapping[str, tuple[str, Backend, float]] = {
    "onnx": ("Optimum", Onnx(backend="onnx", exporter="optimum", precision="fp32"), 0.001),
}
"""What takes a family that those recipes refuse: its name in the table, the recipe, and its largest error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One family's checkpoint, ready to be built from."""

    checkpoint: Path
    corpus: Path
    config: dict[str, Any]
    vocabulary: Vocabulary
    ids: Ids
    """One window of text that calibration has not seen."""
    logits: Logits
    """The checkpoint's own, in float32, for every position but the last."""


@pytest.fixture(scope="module")
def vocabularies() -> Path | None:
    try:
        return llama_cpp.find().vocabularies
    except RequirementError:
        return None


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, vocabularies: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The family named by the parameter; pytest runs all its tests together, so that each is made once."""
    family = FAMILIES[request.param]
    if vocabularies is None and isinstance(family.vocabulary, ByteLevel):
        pytest.skip("its real vocabulary comes with the llama.cpp sources; run `make setup`")
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = folder / "checkpoint"
    family.make(checkpoint, vocabularies or Path())
    record = check(obtain(str(checkpoint), None), str(checkpoint), lambda _: {})
    assert (record.architecture, record.dtype) == (family.architecture, "bfloat16")
    (folder / "corpus").mkdir()
    tokenizer = hf_tokenizer.load(checkpoint)
    windows = _windows(tokenizer)
    calibration = windows[:-1]
    Windows(
        ids=calibration,
        document=np.arange(len(calibration), dtype=np.int32),
        utf8_bytes=np.full(len(calibration), WINDOW_TOKENS, np.int64),
    ).save(folder / "corpus" / "calibration.npz")
    return Case(
        checkpoint=checkpoint,
        corpus=folder / "corpus",
        config=json.loads((checkpoint / "config.json").read_text(encoding="utf-8")),
        vocabulary=hf_tokenizer.vocabulary(
            tokenizer, [tokenizer.decode(ids, skip_special_tokens=True) for ids in calibration[:3]]
        ),
        ids=windows[-1],
        logits=_reference(checkpoint, windows[-1]),
    )


def _windows(tokenizer: Any) -> Ids:
    text = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    ids = tokenizer.encode(text[:100_000], add_special_tokens=False)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    windows = np.full((CALIBRATION_WINDOWS + 1, WINDOW_TOKENS), prefix, np.int32)
    windows[:, 1:] = np.array(ids[: windows[:, 1:].size]).reshape(len(windows), -1)
    return windows


def _reference(checkpoint: Path, ids: Ids) -> Logits:
    from transformers import AutoModelForCausalLM

    model = cast(Any, AutoModelForCausalLM).from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        found = model(torch.from_numpy(ids[:-1].astype(np.int64))[None]).logits[0].numpy()
    return cast(Logits, found)


def error_share(found: Logits, reference: Logits) -> float:
    """Root mean square error of the logits, as a share of how far the reference's own are spread.

    A constant over a row changes no probability, so each row's mean is taken off first. Unrelated logits give 1.4. What
    a conversion may forget gives from 0.18 (Granite's attention multiplier) over 0.3 (Gemma 3's order of layers) to 0.8
    (a sliding window) in these models; rounding to 4 bits 0.08 to 0.42, more layers more.
    """
    one, two = (logits.astype(np.float64) - logits.mean(axis=1, keepdims=True) for logits in (found, reference))
    return float(np.sqrt(np.square(one - two).mean() / np.square(two).mean()))


def _pair(family: str, backend: str) -> Any:
    """Return a family and a backend as parameters: those of EVERY_RUN, and GGUF of all families, are of each run."""
    always = family in EVERY_RUN or backend == "gguf"
    return pytest.param(family, backend, marks=() if always else pytest.mark.nightly)


@pytest.mark.parametrize(
    ("case", "backend"),
    [_pair(family, backend) for family in FAMILIES for backend in RECIPES],
    indirect=["case"],
)
def test_a_backend_takes_a_family_whole_or_says_why_not(
    case: Case,
    backend: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = request.node.callspec.params["case"]
    for recipe, _ in RECIPES[backend]:
        if missing := recipe.requirements():
            pytest.skip(f"{missing[0].what}; {missing[0].remedy}")
    monkeypatch.chdir(case.checkpoint.parent)
    reasons = {recipe.refusal(case.config) for recipe, _ in RECIPES[backend]}
    assert len(reasons) == 1, f"{backend}: its recipes disagree: {reasons}"
    (reason,) = reasons
    by = None
    if reason is not None and backend in OTHERWISE:
        by, recipe, bound = OTHERWISE[backend]
        if (other := recipe.refusal(case.config)) is None:
            _prove(recipe, case, tmp_path / by, bound)
            reason = None
        else:
            reason, by = f"{reason}; {other}", None
    elif reason is None:
        for recipe, bound in RECIPES[backend]:
            _prove(recipe, case, tmp_path / str(bound), bound)
    found = Found(family=name, backend=backend, reason=reason, by=by)
    record_property(PROPERTY, found.model_dump())
    if not request.config.stash.get(MEASURING, False):
        expected = load().families[name].backends[backend]
        assert (reason, by) == (expected.reason, expected.by), (
            f"{SUPPORT} is out of date; run `python -m tests.support.support_table --measure`"
        )


def _prove(recipe: Backend, case: Case, out: Path, bound: float) -> None:
    out.mkdir()
    recipe.build(case.checkpoint, case.corpus, out, Compute(threads=2))
    with recipe.inspect(out, case.checkpoint) as contents:
        assert checks.problems(contents, case.vocabulary) == []
        print(
            f"{recipe}: chat template agreement {checks.chat_template_agreement(contents.tokenizer, case.vocabulary)}"
        )
    with recipe.open(out, Compute(threads=THREADS)) as runner:
        blocks = [np.array(block) for block in runner.logits(case.ids)]
        greedy = list(runner.generate(case.ids[:32], 4))
    # An embedding may be padded, or cut to the tokens there are: compare what both have.
    columns = min(blocks[0].shape[1], case.logits.shape[1])
    logits = np.concatenate(blocks)[:, :columns]
    share = error_share(logits, case.logits[:, :columns])
    print(f"{recipe}: error share {share:.4f}")
    assert share < bound
    # Not equal to the argmax: a runtime's kernels for one token and for many round differently, and two may be near.
    behind = logits[31].max() - logits[31, greedy[0]]
    assert behind < 0.1 * logits[31].std(), "generation and scoring must be of one model"


def test_a_family_that_no_backend_takes_is_refused_before_any_conversion(tmp_path: Path) -> None:
    FAMILIES["llama-2"].make(tmp_path / "checkpoint", Path())
    path = tmp_path / "checkpoint" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}
    path.write_text(json.dumps(config), encoding="utf-8")
    recipes = {f"{name}-{i}": recipe for name, pairs in RECIPES.items() for i, (recipe, _) in enumerate(pairs)}
    if any(recipe.requirements() for recipe in recipes.values()):
        pytest.skip("a backend whose tools are missing cannot say what it takes; run `make setup`")
    source = str(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="NoSuchForCausalLM") as refused:
        check(obtain(source, None), source, lambda read: {name: one.refusal(read) for name, one in recipes.items()})
    for name in recipes:
        assert f"\n  {name}: " in str(refused.value)
