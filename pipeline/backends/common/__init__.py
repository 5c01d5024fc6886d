"""What backends share."""

import logging

for library in ("torchao", "torch.utils._pytree"):
    # Importing transformers' models imports torchao, which warns of its kernels for hardware that is not here.
    logging.getLogger(library).setLevel(logging.ERROR)
