"""What libraries say that concerns nobody who runs Assay."""

import logging

ABOUT_OTHER_HARDWARE = ("torchao", "torch.utils._pytree")
"""Importing transformers' models imports torchao, which warns of its kernels for hardware that is not here."""


def hush() -> None:
    """Keep them from warning; before transformers' models are imported."""
    for library in ABOUT_OTHER_HARDWARE:
        logging.getLogger(library).setLevel(logging.ERROR)
