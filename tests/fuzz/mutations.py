"""Mutations of valid examples: values, types, nesting, truncation, flipped bits, exchanged parts, Unicode, sizes."""

import json
import random
from typing import Any

TEXTS = (
    "", "\0", " ", "x" * 300, "x" * 20_000, "../" * 100, "*", "[", "é", "\ud800", "日本", "-", "--json", "nan", "1e999", "%s",
    "{0}", "none", "package:x/y", "hf://a/b/c", "s3://", "://", "/dev/null", "/dev/zero", "/", ".", "a\nb", "'\"", "\\", "🌧",
    "true", "2020-01-01", "0", "-1",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 3, 2**31, 2**63, 2**64, 10**30, 10**4000, 0.0, -0.5, 1e-300, 1e300, float("inf"), float("nan"))


def nested(draw: random.Random, depth: int) -> Any:
    value: Any = draw.choice((1, "a", []))
    for _ in range(depth):
        value = [value, value] if draw.random() < 0.1 and depth < 20 else draw.choice(([value], {"a": value}))
    return value


def any_value(draw: random.Random) -> Any:
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice(TEXTS)
    if kind in (1, 2):
        return draw.choice(NUMBERS)
    if kind == 3:
        return draw.choice((True, False, None, [], {}, [[]], {"": {}}))
    if kind == 4:
        return nested(draw, draw.choice((1, 3, 20, 200)))
    if kind == 5:
        return [draw.choice(NUMBERS)] * draw.choice((1, 2, 1000))
    if kind == 6:
        return {draw.choice(TEXTS): draw.choice(TEXTS) for _ in range(draw.choice((1, 3)))}
    return [draw.choice(TEXTS)] * draw.choice((1, 3, 500))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every value inside a tree of dictionaries and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [each for key, value in inside for each in ((*path, key), *places(value, (*path, key)))]


def changed_tree(tree: Any, draw: random.Random) -> Any:
    """A copy with one to three values exchanged, removed, added, moved or changed a little."""
    copy = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not (known := places(copy)):
            return any_value(draw)
        *above, last = draw.choice(known)
        inside = copy
        for key in above:
            inside = inside[key]
        value, kind = inside[last], draw.randrange(7)
        if kind == 0:
            del inside[last]
        elif kind == 1 and isinstance(value, int | float) and not isinstance(value, bool):
            inside[last] = draw.choice((-value, value + 1, value * 2, value * 1000, value // 3, str(value)))
        elif kind == 2 and isinstance(value, str):
            at = draw.randrange(len(value) + 1)
            inside[last] = value[:at] + draw.choice(TEXTS) + value[at:]
        elif kind == 3 and isinstance(inside, dict):
            inside[draw.choice(TEXTS)] = any_value(draw)
        elif kind == 4:
            *other, end = draw.choice(known)
            source = copy
            try:
                for key in other:
                    source = source[key]
                inside[last] = json.loads(json.dumps(source[end]))
            except (KeyError, IndexError, TypeError):  # removed before
                inside[last] = []
        else:
            inside[last] = any_value(draw)
    return copy


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """The bytes truncated, with flipped bits, with a part moved or repeated, or with others put in."""
    kind, at = draw.randrange(6), draw.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        flipped = bytearray(content)
        for _ in range(draw.choice((1, 2, 8))):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    end = min(len(content), at + draw.choice((1, 10, 100)))
    if kind == 2:
        return content[:at] + content[at:end] * draw.choice((2, 50)) + content[end:]
    if kind == 3:
        return content[:at] + content[end:]
    put = draw.choice((
        b"\0", b"\xff\xfe", b"[" * 5000, b"{" * 5000, b"9" * 5000, b"a." * 3000, b'"', b"'''", b"\n", b"=", b"\xf0\x9f", b"[a]",
        b"[[a]]\n", b" = {}", b"# ", b"0x" + b"f" * 5000, b"1e999", b"nan", b"\r", b"\\u0000", b"\\ud800", b"\x80\x02}",
    ))  # fmt: skip
    return content[:at] + put + content[at if kind == 4 else end :]
