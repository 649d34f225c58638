"""The errors of a checkpoint that cannot be used."""

from refdiff.messages import printable


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor or field, and the fix.

    The message may quote names and values of the checkpoint: it is escaped and shortened
    (`refdiff.messages`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingFileError(OSError, CheckpointError):
    """A folder, repo or file of a checkpoint that is not there: also an `OSError`, as transformers raises.

    `OSError` stands first, since libraries that pickle errors make them by the first built-in base.
    """

    def __init__(self, message: str) -> None:
        CheckpointError.__init__(self, message)
