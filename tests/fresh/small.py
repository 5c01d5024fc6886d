"""A clone whose demo takes minutes: few artifacts, short texts."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def clone(target: Path, artifacts: Sequence[str]) -> None:
    """Clone the commit that is checked out, and keep these artifacts of params.yaml."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, target], check=True)
    path = target / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["artifacts"] = {name: params["artifacts"][name] for name in artifacts}
    params["corpus"]["calibration"]["windows"] = 24
    params["corpus"]["evaluation"]["windows"] = 12
    params["selection"]["constraints"] = {"perplexity_ratio": {"at_most": 1.1}}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
