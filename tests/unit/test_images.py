"""What goes into an image, and what is written about it, without building one."""

import itertools
import json
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from evals.statistics import Estimate
from pipeline import oci, paths
from pipeline.errors import ParamsError, RegistryError, RequirementError
from pipeline.images import assemble, bases, builders, debootstrap, manifest, provenance, sbom, state, wheels
from pipeline.images.manifest import ROOT
from pipeline.oci import Entry, Layout
from pipeline.records import (
    Artifact,
    Checkpoint,
    Corpus,
    Engine,
    EngineName,
    Image,
    Latency,
    Package,
    Placement,
    Revision,
    Served,
    Split,
    Standing,
)  # fmt: skip
from pipeline.stages.image import settings, version

DIGEST = f"sha256:{'ab' * 32}"
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1:2~3
"""


@pytest.fixture
def engine(tmp_path: Path) -> Layout:
    layout = Layout.create(tmp_path / "engine")
    layer = layout.add_layer([Entry(path=PurePosixPath("/var/lib/dpkg/status"), content=STATUS.encode())])
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": "test"}],
    }
    layout.finish(config, [layer], {})
    return layout


@pytest.fixture
def build(tmp_path: Path, engine: Layout) -> Callable[[str], Layout]:
    """Assemble an image of a small artifact and of small code, into a folder of a given name."""
    files = {
        "weights/model.bin": "weights",
        "weights/assay.json": "{}",
        "code/pipeline/__init__.py": "",
        "code/containers/gateway/page.html": "<p>",
        "code/containers/gateway/__pycache__/page.cpython-311.pyc": "no",
        "code/evals/notes.md": "no",
        "records/quality.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def assembled(name: str) -> Layout:
        evidence = {"quality.json": tmp_path / "records" / "quality.json"}
        parts = tmp_path / "weights", tmp_path / "code"
        labels, settings = {"ai.assay.engine": "test"}, {"ASSAY_ENGINE": "llama_cpp"}
        return assemble.assemble(engine, *parts, evidence, labels, settings, tmp_path / name)[0]

    return assembled


def names(layout: Layout, layer: oci.Descriptor) -> list[str]:
    with tarfile.open(layout.path(layer.digest)) as tar:
        return [member.name for member in tar if member.isfile()]


def test_an_image_is_engine_weights_code_and_evidence(build: Callable[[str], Layout]) -> None:
    layout = build("image")
    layout.check()
    assert [layer.annotations["ai.assay.layer"] for layer in layout.layers] == [
        *("engine", "weights", "code", "evidence"),
    ]
    assert [names(layout, layer) for layer in layout.layers[1:]] == [
        ["artifact/assay.json", "artifact/model.bin"],
        ["opt/assay/containers/gateway/page.html", "opt/assay/pipeline/__init__.py"],
        ["evidence/quality.json"],
    ]
    config = layout.config
    assert config["rootfs"]["diff_ids"][1:] == [layer.digest for layer in layout.layers[1:]]
    assert len(config["history"]) == len(layout.layers)
    assert config["config"]["User"] == "10001:10001"
    assert config["config"]["Env"][:2] == ["PATH=/usr/bin", "PYTHONPATH=/opt/assay:/opt/python"]
    assert config["config"]["Entrypoint"][:3] == ["python3", "-m", "containers.gateway"]
    assert layout.manifest["annotations"] == config["config"]["Labels"] == {"ai.assay.engine": "test"}


def test_two_builds_give_one_digest_and_code_leaves_weights_alone(
    build: Callable[[str], Layout], tmp_path: Path
) -> None:
    first, second = build("first"), build("second")
    assert first.image == second.image
    (tmp_path / "code" / "pipeline" / "__init__.py").write_text("changed = True")
    third = build("third")
    same = [one == other for one, other in zip(first.layers, third.layers, strict=True)]
    assert same == [True, True, False, True]


def test_weights_are_bundled_up_to_a_limit_and_never_cut(tmp_path: Path) -> None:
    sizes = {"a": 2, "b": 2, "c": 30, "d": 1, "e": 6}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size * 2**20))
    bundles = assemble.bundles(sorted(tmp_path.iterdir()), 10 * 2**20)
    assert [[file.name for file in bundle] for bundle in bundles] == [["a", "b"], ["c"], ["d", "e"]]


def test_versions_name_the_state_of_the_code() -> None:
    assert version("1.2.0", Revision(commit=None, dirty=False)) == "1.2.0"
    assert version("1.2.0", Revision(commit="1a2b3c4d5e6f", dirty=False)) == "1.2.0+g1a2b3c4d"
    assert version("1.2.0", Revision(commit="1a2b3c4d5e6f", dirty=True)) == "1.2.0+g1a2b3c4d.dirty"


def test_the_revision_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "ROOT", tmp_path)

    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    assert state.revision() == Revision(commit=None, dirty=False)
    git("init")
    for package in assemble.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "code.py").write_text("one")
    git("add", ".")
    git("commit", "-m", "code")
    first = state.revision()
    assert first.commit is not None
    assert not first.dirty
    (tmp_path / "README.md").write_text("words")
    git("add", ".")
    git("commit", "-m", "words")
    assert state.revision() == first
    (tmp_path / "evals" / "code.py").write_text("two")
    assert state.revision() == Revision(commit=first.commit, dirty=True)


def no_lookup(reference: str) -> str:
    raise RegistryError(f"{reference}: no answer")


def no_question(reference: str) -> str:
    raise AssertionError(f"{reference}: its Python is known")


PYTHONS = frozenset(wheels.PYTHONS)


def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = tmp_path / "images.toml"
    path.write_text(text)
    monkeypatch.setattr(manifest.load, "__defaults__", (path,))
    monkeypatch.delenv("ASSAY_BASE", raising=False)
    return path


UNPINNED = """# a comment
[runtime] # why
image = "registry.example.com/python:3.13"
python = "3.13"

[build]
image = "registry.example.com/gcc:14"
python = "3.13"

[debootstrap]
suite = "trixie"
runtime = ["python3"]
build = ["python3", "g++"]

[debootstrap.suites]
bookworm = { distribution = "debian", python = "3.11" }
trixie = { distribution = "debian", python = "3.13" }
noble = { distribution = "ubuntu", python = "3.12" }
"""


def test_a_digest_is_written_under_its_image_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "images.toml"
    path.write_text(UNPINNED)
    manifest.write_digest("build", DIGEST, path)
    manifest.write_digest("build", DIGEST.replace("a", "c"), path)
    assert path.read_text() == UNPINNED.replace('gcc:14"\n', f'gcc:14"\ndigest = "{DIGEST.replace("a", "c")}"\n')
    assert manifest.load(path).build.digest == DIGEST.replace("a", "c")
    assert manifest.load(path).runtime.digest is None


def test_a_pinned_base_is_used_by_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images(tmp_path, monkeypatch, UNPINNED)
    for section in ("runtime", "build"):
        manifest.write_digest(section, DIGEST, path)
    found = bases.find(None, PYTHONS, no_lookup, no_question)
    assert found.runtime.python == "3.13"
    assert found.runtime.reference == f"registry.example.com/python:3.13@{DIGEST}"
    assert found.build.reference == f"registry.example.com/gcc:14@{DIGEST}"


def test_without_digests_debian_packages_are_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path, monkeypatch, UNPINNED)
    monkeypatch.setattr(debootstrap, "missing", lambda: None)
    monkeypatch.setattr(debootstrap, "layout", lambda wanted, suite, kind: engine)
    monkeypatch.setattr(debootstrap, "codename", lambda: "noble")
    found = bases.find(None, PYTHONS, no_lookup, no_question)
    assert (found.runtime.name, found.runtime.digest) == ("debootstrap:noble", engine.image.digest)
    assert found.runtime.python == found.build.python == "3.12"
    assert "the base is made of noble's packages" in capsys.readouterr().err


def test_a_base_is_of_this_machines_release_where_wheels_are_locked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, monkeypatch, UNPINNED)
    wanted = manifest.load().debootstrap
    for here, pythons, suite in (
        ("bookworm", PYTHONS, "bookworm"),
        ("noble", PYTHONS, "noble"),
        ("jammy", PYTHONS, "trixie"),  # not in the table
        ("", PYTHONS, "trixie"),
        ("noble", {"3.11"}, "bookworm"),  # the default has another Python, too
    ):
        monkeypatch.setattr(debootstrap, "codename", lambda here=here: here)
        assert debootstrap.suite(wanted, pythons) == suite
    with pytest.raises(RequirementError, match=r"no release has Python 3\.14 .*trixie has 3\.13"):
        debootstrap.suite(wanted, {"3.14"})


def test_without_any_base_it_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, monkeypatch, UNPINNED)
    monkeypatch.setattr(debootstrap, "missing", lambda: "mmdebstrap is not installed")
    with pytest.raises(RequirementError, match=r"assay images pin.*apt-get install mmdebstrap"):
        bases.find(None, PYTHONS, no_lookup, no_question)


def test_another_base_is_looked_up_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, monkeypatch, UNPINNED)
    monkeypatch.setenv("ASSAY_BASE", "localhost:5000/mine:1")
    asked = []

    def ask(reference: str) -> str:
        asked.append(reference)
        return "3.13"

    found = bases.find("registry.example.com/other:1", PYTHONS, lambda _: DIGEST, ask)
    assert found.runtime.name == "localhost:5000/mine:1"
    assert asked == [f"localhost:5000/mine:1@{DIGEST}"]
    assert found.build.name == "registry.example.com/gcc:14"
    with pytest.raises(RequirementError, match="no answer"):
        bases.find(None, PYTHONS, no_lookup, ask)


def test_packages_are_installed_with_the_python_of_ones_own_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Layout
) -> None:
    images(tmp_path, monkeypatch, UNPINNED)
    monkeypatch.setattr(debootstrap, "layout", lambda wanted, suite, kind: engine)
    found = bases.find("mine:1", PYTHONS, lambda _: DIGEST, lambda _: "3.12")
    assert (found.runtime.name, found.runtime.python) == ("mine:1", "3.12")
    assert (found.build.name, found.build.python) == ("debootstrap:noble", "3.12")
    with pytest.raises(RequirementError, match=r"mine:1 has Python 3\.10, and wheels are locked for 3\.11, 3\.12"):
        bases.find("mine:1", PYTHONS, lambda _: DIGEST, lambda _: "3.10")


def test_no_builder_is_a_requirement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequirementError, match="apt-get install buildah"):
        builders.find()


def test_every_package_of_an_image_is_pinned_as_the_environment_is() -> None:
    """What was measured is what is served: an image must not run other versions than evaluation did."""
    pinned = wheels.pinned()
    files = wheels.locked()
    assert files
    for file in files:
        for one in wheels.read(file):
            assert one.version.partition("+")[0] == pinned[one.name], f"{file}: {one.name}"


def test_a_lock_holds_a_wheel_for_every_python_and_machine_that_it_names(tmp_path: Path) -> None:
    for file in wheels.locked():
        names = [one.name for one in wheels.read(file)]
        assert len(names) == len(set(names))
    for engine in ("llama_cpp", "onnxruntime"):
        assert wheels.pythons(engine, "x86_64") == PYTHONS
    assert "3.11" in wheels.pythons("transformers", "x86_64")
    assert wheels.pythons("vllm", "x86_64") == {"3.12"}


def test_a_python_without_wheels_is_a_requirement_that_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    path = folder / "requirements.txt"
    path.write_text(f"# All found for: 3.11 x86_64, 3.11 aarch64\nnumpy==2.2.6 --hash=sha256:{'a' * 64}\n")
    with pytest.raises(RequirementError, match=r"requirements\.txt has no wheels for Python 3\.13.*image\.base"):
        wheels.wheelhouse(path, "3.13")


def test_pip_is_told_the_machine_that_wheels_are_for() -> None:
    flags = list(wheels.Target(python="3.13", machine="aarch64").flags)
    platforms = {value for name, value in itertools.pairwise(flags) if name == "--platform"}
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64", "linux_aarch64"} <= platforms
    assert not any(name.endswith("x86_64") or name.startswith("manylinux1_") for name in platforms)
    assert {value for name, value in itertools.pairwise(flags) if name == "--abi"} == {
        "cp313",
        "abi3",
        "none",
    }


def test_a_requirement_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("# why\nnumpy==2.2.6\n")
    with pytest.raises(ParamsError, match="assay images lock"):
        wheels.read(tmp_path / "requirements.txt")


def records() -> dict[str, Any]:
    """One of each, as the stages would have written them."""
    split = Split(source="s", revision=None, documents=1, windows=1, tokens=1, dropped_tokens=0, utf8_bytes=1)
    return {
        "image": Image(
            name="team/model", version="1.0", revision="c" * 40, artifact="gguf-q4", artifact_digest="1" * 64,
            digest=DIGEST,
        ),
        "engine": Engine(
            name="llama_cpp", digest=DIGEST, base="debootstrap:trixie", base_digest=DIGEST, builder="buildah 1.28.2",
            python="3.13", packages=(Package(name="torch", version="2.13.0+cpu", sha256="5" * 64),),
        ),
        "artifact": Artifact(
            name="gguf-q4", recipe={"backend": "gguf", "quantization": "Q4_0"}, checkpoint="2" * 64,
            calibration="3" * 64, digest="1" * 64,
        ),
        "checkpoint": Checkpoint(
            source="hf://org/name", revision="d" * 40, architecture="LlamaForCausalLM", dtype="bfloat16", parameters=1,
            vocabulary_size=1, context_tokens=1, files=(), digest="2" * 64,
        ),
        "corpus": Corpus(
            checkpoint="2" * 64, window_tokens=1, prefix_id=1, calibration=split, evaluation=split, overlap=0.0,
            files=(), digest="4" * 64,
        ),
        "standing": Standing(
            name="gguf-q4", rank=1, metrics={"perplexity_ratio": Estimate(value=1.0, low=0.9, high=1.1), "bytes": None}
        ),
    }  # fmt: skip


def test_the_bill_of_materials_follows_its_schema_and_holds_the_measurements(engine: Layout) -> None:
    given = records()
    parts = given["artifact"], given["checkpoint"], given["standing"]
    made = sbom.bom(given["image"], given["engine"], engine, *parts)
    assert made == sbom.bom(given["image"], given["engine"], engine, *parts)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made))
    assert error is None, error
    kinds = {component["name"]: component for component in made["components"]}
    card = kinds["gguf-q4"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    interval = {"lowerBound": "0.9", "upperBound": "1.1"}
    assert card == [{"type": "perplexity_ratio", "value": "1", "confidenceInterval": interval}]
    assert kinds["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
    assert "gone" not in kinds
    assert kinds["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert kinds["torch"]["hashes"] == [{"alg": "SHA-256", "content": "5" * 64}]
    assert "llama-cpp-python" in kinds


def test_packages_of_ubuntu_are_named_as_ubuntus(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "ubuntu")
    files = {"/var/lib/dpkg/status": STATUS, "/usr/lib/os-release": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n'}
    layer = layout.add_layer(Entry(path=PurePosixPath(path), content=text.encode()) for path, text in files.items())
    layout.finish({"architecture": "amd64", "os": "linux", "rootfs": {}}, [layer], {})
    assert sbom.distribution(layout) == "ubuntu"


def test_the_bill_of_materials_names_a_runtime_that_came_as_an_image(engine: Layout) -> None:
    given = records()
    base = {"base": "docker.io/vllm/vllm-openai:v1", "base_digest": DIGEST}
    parts = given["artifact"], given["checkpoint"], given["standing"]
    served = given["engine"].model_copy(update={"name": "vllm"})
    made = sbom.bom(given["image"].model_copy(update=base), served, engine, *parts)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made)) is None
    (runtime,) = (one for one in made["components"] if one["type"] == "container")
    assert (runtime["name"], runtime["version"]) == ("docker.io/vllm/vllm-openai", "v1")
    assert runtime["hashes"] == [{"alg": "SHA-256", "content": DIGEST[7:]}]


def test_provenance_names_everything_that_went_in() -> None:
    given = records()
    parts = given["artifact"], given["checkpoint"], given["corpus"]
    made = provenance.statement(given["image"], given["engine"], *parts, {"version": "1.0"})
    assert made["subject"] == [{"name": "team/model", "digest": {"sha256": DIGEST[7:]}}]
    definition = made["predicate"]["buildDefinition"]
    known = {one.get("name") or one["uri"]: one["digest"] for one in definition["resolvedDependencies"]}
    assert known["checkpoint"] == {"sha256": "2" * 64, "gitCommit": "d" * 40}
    assert known["code"] == {"gitCommit": "c" * 40}
    assert known["base"] == {"sha256": DIGEST[7:]}
    assert any(name.startswith("pkg:pypi/llama-cpp-python@") for name in known)
    assert known["pkg:pypi/torch@2.13.0%2Bcpu"] == {"sha256": "5" * 64}
    assert all(digest for digest in known.values())


VLLM = """
[vllm]
image = "registry.example.com/vllm:v1"
python = "3.12"
"""


def test_a_runtime_that_is_an_image_is_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images(tmp_path, monkeypatch, UNPINNED + VLLM)
    monkeypatch.setenv("ASSAY_BASE", "localhost:5000/mine:1")
    with pytest.raises(RequirementError, match=r"no runtime image for vllm: .*vllm:v1.*assay images pin"):
        bases.of_engine("vllm", None, no_lookup, no_question)
    manifest.write_digest("vllm", DIGEST, path)
    found = bases.of_engine("vllm", None, no_lookup, no_question)
    assert found.runtime.python == "3.12"
    assert found.runtime.reference == found.build.reference == f"registry.example.com/vllm:v1@{DIGEST}"
    own = bases.of_engine("onnxruntime", None, lambda _: DIGEST, lambda _: "3.13")
    assert own.runtime.name == "localhost:5000/mine:1"


def test_images_of_gpu_runtimes_are_of_the_versions_whose_flags_were_read() -> None:
    pins = manifest.load()
    for name, pin in (("vllm", pins.vllm), ("tensorrt_llm", pins.tensorrt_llm)):
        flags = tomllib.loads((ROOT / "containers" / "engines" / name / "flags.toml").read_text(encoding="utf-8"))
        assert pin is not None
        assert pin.image.rpartition(":")[2].removeprefix("v") == flags.get("version", flags.get("tag", "v")[1:])
        for wheel in wheels.read(manifest.parts(name) / "requirements.txt"):
            assert wheel.name not in ("torch", "vllm", "tensorrt-llm"), "the image brings its own"


@pytest.mark.parametrize("placed", [True, False])
def test_an_image_serves_with_what_was_measured(placed: bool) -> None:
    placement = Placement(tensor_parallel=2, gpu_memory_fraction=0.8) if placed else None
    found = settings(served("vllm" if placed else "onnxruntime", placement))
    more = {"ASSAY_TENSOR_PARALLEL": "2", "ASSAY_GPU_MEMORY_FRACTION": "0.8"} if placed else {}
    assert found == {"ASSAY_ENGINE": "vllm" if placed else "onnxruntime", **more}


def served(engine: EngineName, placement: Placement | None = None) -> Served:
    return Served(
        engine=engine, placement=placement, runtime="r", slots=1, context_tokens=64, prompt_tokens=1, output_tokens=2,
        load_seconds=3, peak_rss_bytes=5, levels=(),
    )  # fmt: skip


def test_where_nothing_builds_images_the_records_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.params import load
    from pipeline.records import FILE, Selection
    from pipeline.stages.engine import engine as engine_stage
    from pipeline.stages.image import image as image_stage

    params = load(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ASSAY_STRICT", raising=False)
    given = records()
    Selection(
        objective={}, constraints={}, winner="gguf-q4", ranking=(given["standing"],), pareto_front=()
    ).save(paths.SELECTION)  # fmt: skip
    given["artifact"].save(paths.artifact("gguf-q4") / FILE)
    Latency(name="gguf-q4", artifact="a", served=served("llama_cpp")).save(paths.latency("gguf-q4"))
    Revision(commit=None, dirty=False).save(paths.REVISION)
    engine_stage(params)
    image_stage(params)
    found = Image.load(paths.IMAGE / FILE)
    assert found.digest is None
    assert found.unavailable is not None
    assert "apt-get install buildah" in found.unavailable
    monkeypatch.setenv("ASSAY_STRICT", "1")
    for stage in (engine_stage, image_stage):
        with pytest.raises(RequirementError, match="apt-get install buildah"):
            stage(params)
    shutil.rmtree(tmp_path / "image")
