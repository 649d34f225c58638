"""repo id → files on disk, through huggingface_hub and its cache."""

from refdiff.hub.download import ARGUMENTS, HubOptions, snapshot
from refdiff.hub.remote import outline

__all__ = ["ARGUMENTS", "HubOptions", "outline", "snapshot"]
