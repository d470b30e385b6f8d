"""Errors that end a command with one clear message instead of a stack trace."""

from __future__ import annotations


class TapLocalError(Exception):
    """Something that the user can mend; the message says what and how."""


class InterruptError(TapLocalError):
    """Ctrl-C during a change; nothing is lost."""


class UnsupportedError(TapLocalError):
    """The program uses a resource type or an input that the local cloud does not know."""
