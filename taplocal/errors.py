"""Errors that end a command with one clear message instead of a traceback."""

from __future__ import annotations


class TapLocalError(Exception):
    """An error that the user can fix; the message says what is wrong and how to fix it.

    `at` is the file and the line of the program that it is about, where one is known.
    """

    def __init__(self, message: str, at: tuple[str, int] | None = None):
        super().__init__(message)
        self.at = at


class InterruptError(TapLocalError):
    """Ctrl-C during a deployment; the next run continues it."""


class UnsupportedError(TapLocalError):
    """The program uses a resource type or an input that the local cloud does not support."""


def of_folder(error: OSError) -> TapLocalError:
    """The error of a data folder that cannot be read or written; of no file, what it says."""
    if not error.filename:
        return TapLocalError(error.strerror or str(error))
    return TapLocalError(
        f"{error.strerror}: {error.filename}: give a folder in which you may write with --data"
    )
