"""What libraries say that concerns nobody who runs Assay."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

ABOUT_OTHER_HARDWARE = ("torchao", "torch.utils._pytree")
"""Importing transformers' models imports torchao, which warns of its kernels for hardware that is not here."""


def hush() -> None:
    """Keep them from warning; before transformers' models are imported."""
    for library in ABOUT_OTHER_HARDWARE:
        logging.getLogger(library).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loaders' banners off stdout, their warnings and bars off stderr. Errors are raised, not logged."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers_logging.enable_progress_bar()
