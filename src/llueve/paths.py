"""Check the text of a path before the operating system sees it."""

import os
import re

LONGEST_NAME = 255
"""Most bytes of one name in a path, on common file systems."""
LONGEST_PATH = 4096
"""Most bytes of a path."""


def path_problem(path: str) -> str | None:
    """The reason why no file can have this path, as the end of a message; None if it is possible."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return "holds a character that no file name can have"
    if b"\0" in encoded:
        return "holds a NUL character; remove it"
    longest = max(map(len, re.split(rb"[/\\]" if os.name == "nt" else rb"/", encoded)))
    if longest > LONGEST_NAME:
        return f"holds a name of {longest:,} bytes; expected at most {LONGEST_NAME}"
    if len(encoded) > LONGEST_PATH:
        return f"has {len(encoded):,} bytes; expected at most {LONGEST_PATH:,}"
    return None
