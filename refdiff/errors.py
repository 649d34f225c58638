"""The one error that is refdiff's own; everything else is a built-in exception."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor or field, and the way out."""
