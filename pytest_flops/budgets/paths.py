"""Where baselines lie: beside the test file, under names that are good on every operating system.

Every run of pytest loads this room, so it imports next to nothing.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

FOLDER = "flops_baselines"

_KEPT_CHARACTERS = 80
_UNPORTABLE = re.compile(r"[^A-Za-z0-9_.\[\]-]+")
_LOOKS_HASHED = re.compile(r".*-[0-9a-f]{8}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def baseline_path(test_file: Path, test: str) -> Path:
    """Return the file that holds the baseline of a test, given its id (see `Place.test`)."""
    _, _, inside = test.partition("::")
    return baseline_folder(test_file) / f"{portable(inside)}.json"


@functools.lru_cache(maxsize=64)
def baseline_folder(test_file: Path) -> Path:
    """Return the folder that holds the baselines of one test file."""
    return test_file.parent / FOLDER / portable(test_file.stem)


def portable(name: str) -> str:
    """Return a file name for any text that is good on every operating system and differs for every text.

    Where the plain form loses anything, or could be taken for another's, a short hash of the text follows.
    Upper case counts as a loss: some file systems do not tell `A` from `a`.
    """
    plain = _UNPORTABLE.sub("-", name.replace("::", "."))[:_KEPT_CHARACTERS].strip(".")
    lossless = plain == name == name.lower()
    if plain and lossless and not _RESERVED.fullmatch(plain) and not _LOOKS_HASHED.fullmatch(plain):
        return plain
    import hashlib

    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    guard = "_" if _RESERVED.fullmatch(plain) else ""
    return f"{guard}{plain}-{digest}"


def shown_path(path: Path, start: Path) -> str:
    """Return a path as the user would type it: relative to where pytest was started, when inside it."""
    return os.fspath(path).removeprefix(os.path.join(start, ""))
