"""The checkpoint: fetched or linked, checked before anything is built from it."""

from collections.abc import Mapping
from typing import Any

from pipeline import paths
from pipeline.checkpoints import check, link, obtain
from pipeline.params import Params
from pipeline.records import FILE


def checkpoint(params: Params) -> None:
    """Fill checkpoint/ with links to the checked files, and its record.

    Only the record is DVC's: the links are machine-local and are made again wherever they are missing, so that a
    checkpoint of 140 GB is stored once.
    """
    source = params.checkpoint.source

    def refusals(config: Mapping[str, Any]) -> dict[str, str | None]:
        return {name: recipe.refusal(config) for name, recipe in params.artifacts.items()}

    obtained = obtain.obtain(source, params.checkpoint.revision, refusals)
    record = check.check(obtained, source, refusals)
    link.link(record, obtained.folder, paths.CHECKPOINT)
    record.save(paths.CHECKPOINT / FILE)
