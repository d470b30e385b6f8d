"""Identity policies: a `*` matches any character.

In MiniStack it matches no newline, which S3 allows in keys.
"""

from __future__ import annotations

import functools
import re

from ministack.core import iam_evaluator


def install() -> None:
    """Replaces MiniStack's function."""
    original = iam_evaluator._fnmatch_compile

    @functools.lru_cache(maxsize=10_000)
    def compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        found = original(pattern, ignore_case)
        return re.compile(found.pattern, found.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compiled
