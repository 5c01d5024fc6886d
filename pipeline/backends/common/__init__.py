"""What backends share."""

from pipeline.checkpoints import libraries

libraries.hush()
