"""A folder's tokenizer, opened through transformers, and without torch in processes that do without it.

transformers imports torch with its configurations wherever torch is installed, which takes longer than all the rest of
a tokenizer. Where torch is not installed, as in the image of an ONNX artifact, the tokenizer is the same.
"""

import os
import sys
from pathlib import Path
from typing import Any, cast

ADVICE_OFF = "TRANSFORMERS_NO_ADVISORY_WARNINGS"

_narrow = False


def spare_torch() -> None:
    """Let transformers pass over torch in this process, unless torch is imported before the first tokenizer is opened.

    For processes that load their model, if any, before they open a tokenizer: from then on transformers takes torch for
    missing, and has no model to offer.
    """
    global _narrow
    _narrow = True


def load(folder: Path) -> Any:
    """Open a folder's tokenizer from its files alone; code that lies in the folder is not run."""
    if _narrow and not {"torch", "transformers"} & sys.modules.keys():
        _import_without_torch()
    from transformers import AutoTokenizer

    return cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _import_without_torch() -> None:
    """Import transformers while no torch can be found; it asks once, says so unless advice is off, and remembers."""
    before = os.environ.get(ADVICE_OFF)
    sys.modules["torch"] = cast(Any, None)
    os.environ[ADVICE_OFF] = "1"
    try:
        import transformers

        assert not transformers.is_torch_available()
    finally:
        del sys.modules["torch"]
        del os.environ[ADVICE_OFF]
        if before is not None:
            os.environ[ADVICE_OFF] = before
