"""One error tree. Input errors are also ``ValueError``, so callers need not know posteria to catch them."""

from __future__ import annotations


class PosteriaError(Exception):
    """Base class of every error that posteria raises on purpose."""


class InputError(PosteriaError, ValueError):
    """An argument is wrong. The message names the argument, what it got and what it takes."""

    @classmethod
    def of(cls, argument: str, got: object, takes: str) -> InputError:
        """Build the standard message.

        Args:
            argument: name of the argument as the caller wrote it.
            got: what arrived (a value or a short description).
            takes: what would have been accepted.
        """
        return cls(f"{argument}: got {got}; takes {takes}")


class DataError(InputError):
    """A dataset or table cannot be used (shapes, NaN, unknown columns, too many features)."""


class CheckpointError(InputError):
    """A file is not a checkpoint of this library, is corrupt, or does not give its reference output."""


class UnsupportedError(InputError):
    """A combination of parts cannot work (for example a simulator-only model in the iterative encoder)."""


class UntrustedError(PosteriaError, RuntimeError):
    """A posterior failed its checks, and only one that passes them was asked for."""


class TrainingError(PosteriaError, RuntimeError):
    """Training cannot go on (persistent non-finite losses, a full disk)."""


class TrainingInterrupted(PosteriaError):
    """Training was asked to stop (Ctrl-C, SIGTERM); its state is on disk and can be resumed."""
