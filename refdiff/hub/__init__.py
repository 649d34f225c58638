"""repo id → files on disk, through huggingface_hub and its cache."""

from refdiff.hub.download import ARGUMENTS, HubOptions, snapshot

__all__ = ["ARGUMENTS", "HubOptions", "snapshot"]
