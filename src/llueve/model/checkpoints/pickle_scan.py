"""Read the structure of a pickle without running it, and refuse one that is no plain dictionary of tensors.

A pickle may name one object many times: 40 nested pairs of the same object take 200 bytes, but 2⁴⁰ steps to hash or to
print. Each object is therefore measured with every repetition written out.
"""

import pickletools
import re
from dataclasses import dataclass, field
from typing import Any

PLAIN_NAMES = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
CODE = ("STACK_GLOBAL", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
"""Operations that make objects of any class."""
LARGEST_PICKLE = 4 * 2**20
"""Most bytes of the pickle; the numbers of the tensors are not part of it."""
MOST_OPERATIONS = 200_000
"""A tensor takes about 40 operations."""
MOST_DEPTH = 32
MOST_UNFOLDED = 10 * 2**20
"""Most objects and characters with every repetition written out."""
LARGEST_NUMBER = 16
"""Most bytes of a whole number."""
READ = ("GET", "BINGET", "LONG_BINGET")
KEPT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
EXTENDED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS")
"""Operations that change the object below their arguments."""


class CodeInPickleError(Exception):
    """The pickle asks for something that is not part of a tensor."""


@dataclass(slots=True)
class Node:
    """One object of a pickle."""

    weight: int
    """1, and the characters of a text."""
    parts: list["Node"] = field(default_factory=list)
    value: object = None
    """Argument of the operation that made it: the text of a text, the number of a number."""
    keys: set[str | int] = field(default_factory=set)
    """Keys of a dictionary."""
    depth: int = 0
    unfolded: int = 0
    """Objects and characters with every repetition written out; 0 before they are counted."""


def scan(content: bytes) -> None:
    """Refuse a pickle that runs code, or that is too large or too deep to be a dictionary of tensors.

    Raises:
        CodeInPickleError: it asks for a function or a class that plain tensors do not need.
        ValueError: it is damaged, or larger, deeper or more repetitive than a checkpoint.
    """
    if len(content) > LARGEST_PICKLE:
        raise ValueError(f"its list of tensors has {len(content):,} bytes, expected at most {LARGEST_PICKLE:,}")
    nodes: list[Node] = []
    stack: list[Node | None] = []
    memo: dict[Any, Node] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if count == MOST_OPERATIONS:
            raise ValueError(f"it has more than {MOST_OPERATIONS:,} operations")
        name = operation.name
        _refuse_code(name, argument)
        if name in READ:
            stack.append(memo[argument])
        elif name in KEPT:
            memo[len(memo) if argument is None else argument] = _top(stack)
        elif name == "MARK":
            stack.append(None)
        else:
            popped = _popped(operation, stack)
            if name in EXTENDED:
                target, *added = popped
                if name.startswith("SETITEM"):
                    _check_keys(target, added[::2])
                target.parts += added
                stack.append(target)
            elif operation.stack_after:
                nodes.append(_new(argument, popped))
                stack += [nodes[-1]] * len(operation.stack_after)
    _measure(nodes)


def _refuse_code(name: str, argument: object) -> None:
    """Refuse every name except those that plain tensors need.

    torch's restricted unpickler also accepts names that create uninitialised tensors and buffers of any size.
    """
    named = name in ("GLOBAL", "INST")
    if named and (argument in PLAIN_NAMES or STORAGE.fullmatch(str(argument))):
        return
    if named or name in CODE:
        raise CodeInPickleError(f"it asks for {str(argument or name)[:100]}")


def _top(stack: list[Node | None]) -> Node:
    if not stack or (top := stack[-1]) is None:
        raise ValueError("its operations do not fit each other")
    return top


def _popped(operation: pickletools.OpcodeInfo, stack: list[Node | None]) -> list[Node]:
    """The objects that an operation takes from the stack, without a mark."""
    before, found = list(operation.stack_before), list[Node]()
    if pickletools.markobject in before:
        while (above := stack.pop() if stack else _top(stack)) is not None:
            found.append(above)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        found.append(_top(stack))
        stack.pop()
    return found[::-1]


def _new(argument: Any, parts: list[Node]) -> Node:
    if isinstance(argument, int) and argument.bit_length() > 8 * LARGEST_NUMBER:
        raise ValueError(f"it holds a whole number of more than {LARGEST_NUMBER} bytes")
    return Node(1 + (len(argument) if isinstance(argument, str | bytes) else 0), parts, argument)


def _check_keys(target: Node, keys: list[Node]) -> None:
    """The keys of a dictionary are texts or numbers, each once."""
    for key in keys:
        if key.parts or not isinstance(key.value, str | int):
            raise ValueError("a key of a dictionary is not a text")
        if key.value in target.keys:
            raise ValueError(f"the key {str(key.value)[:100]!r} occurs twice")
        target.keys.add(key.value)


def _measure(nodes: list[Node]) -> None:
    """Count the depth and the unfolded size of every object, without recursion; a loop is refused."""
    for root in nodes:
        path = [(root, iter(root.parts))] if not root.unfolded else []
        entered = {id(root)}
        while path:
            node, rest = path[-1]
            part = next((each for each in rest if not each.unfolded), None)
            if part is not None:
                if id(part) in entered:
                    raise ValueError("an object contains itself")
                entered.add(id(part))
                path.append((part, iter(part.parts)))
            else:
                path.pop()
                entered.discard(id(node))
                node.depth = 1 + max((each.depth for each in node.parts), default=0)
                node.unfolded = node.weight + sum(each.unfolded for each in node.parts)
                if node.depth > MOST_DEPTH:
                    raise ValueError(f"its objects are nested more than {MOST_DEPTH} deep")
                if node.unfolded > MOST_UNFOLDED:
                    raise ValueError(f"its objects repeat each other more than {MOST_UNFOLDED:,} times")
