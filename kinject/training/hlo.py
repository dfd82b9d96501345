"""What the text of a compiled program says: what it moves between devices, and to and from their memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
SCALARS = 4096  # bytes: the loss, its weights and the like
# which move nothing: names for what is there, and the ends of what a -start has begun
NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id")

_CALL = re.compile(rf" = (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
_OPERATION = re.compile(
    r"  (?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[a-z][\w-]*)\((?P<given>.*)"
)
_OPERAND = re.compile(r"%([\w.-]+)")
_SAID = re.compile(r"flops(?:\\22|\\?\")+: *(?:\\22|\\?\")(\d+?)(?:\\22|\\?\")")  # a kernel's metadata, quotes escaped
_ELSEWHERE = re.compile(r"S\([1-9]\d*\)")  # a memory that is not the device's main one: on the chip, or the host's


@dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array a device ends up with (of what it starts from, in a reduce-scatter).
      group: devices that take part; 0 = all.
    """

    kind: str
    size: int
    group: int


def find_collectives(text: str) -> list[Collective]:
    """Every collective in the text of a compiled module (`compiled.as_text()`), asynchronous ones once.

    One inside a loop is counted once, however often the loop runs; a training step has one only with `fit.micro_batch`.
    """
    found = []
    for line in text.splitlines():
        call = _CALL.search(line)
        if call is None:
            continue
        kind, sizes = call["kind"], [size for size, _ in _arrays(call["shape"])]
        if call["start"] and kind in ("all-gather", "collective-permute"):
            sizes = [max(sizes)]  # such a start yields its operand and its result, the larger of which is the result
        group = _group(line)
        size = sum(sizes) * (max(group, 1) if kind == "reduce-scatter" else 1)
        found.append(Collective(kind, size, group))
    return found


def total_by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}}, only of kinds that occur."""
    totals: dict[str, dict[str, int]] = {}
    for one in collectives:
        entry = totals.setdefault(one.kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += one.size
    return totals


def check_only_gradients(text: str, trained_bytes: int) -> list[Collective]:
    """Asserts that a data-parallel step communicates the trained parameters' gradient and scalars, no more.

    Args:
      text: of the compiled module.
      trained_bytes: float32 bytes of all trained parameters.

    Returns:
      The collectives.

    Raises:
      AssertionError: more than 2 x `trained_bytes` + 4 KB in all, or an operation that moves anything but sums.
    """
    found = find_collectives(text)
    moved, allowed = sum(one.size for one in found), 2 * trained_bytes + SCALARS
    if moved > allowed:
        raise AssertionError(f"a step moves {moved:,} bytes, {allowed:,} are allowed: {total_by_kind(found)}")
    others = {one.kind for one in found} - {"all-reduce", "reduce-scatter", "all-gather"}
    if others:
        raise AssertionError(f"a data-parallel step needs no {', '.join(sorted(others))}")
    return found


def device_traffic(text: str) -> int:
    """Bytes that a compiled module reads from and writes to device memory (HBM), at most.

    Unlike the compiler's "bytes accessed" it leaves out what lies in on-chip memory, by the layouts of a program for
    TPUs (`S(1)`), and counts a copy into it once. What an operation is given counts whole, even where it reads a part;
    what a cache holds counts too. Programs for GPUs and CPUs name no on-chip memory. What a loop does inside is not
    counted: a training step has one only with `fit.micro_batch`.
    """
    return sum(moved for _, moved in _moved(text))


def kernel_cost(text: str) -> tuple[int, int]:
    """(FLOPs, bytes) of a compiled module's custom calls, which XLA's own count leaves out: it does not see into them.

    The bytes are those of operands and results, each whole, and the FLOPs what our kernels say of themselves.
    """
    flops = moved = 0
    for operation, size in _moved(text):
        if operation["kind"] == "custom-call":
            moved += size
            said = _SAID.search(operation["given"])
            flops += int(said[1]) if said else 0
    return flops, moved


def _moved(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each operation of a module's entry that moves something, and how many bytes."""
    sizes: dict[str, int] = {}
    for operation in _operations(text):
        name, kind = operation["name"], operation["kind"]
        arrays = _arrays(operation["shape"])
        sizes[name] = sum(size for size, on_device in arrays if on_device)
        if kind in NOTHING or kind.endswith(("-done", "-update")):
            continue
        if kind in ("copy-start", "slice-start"):  # what is made and what it is made of, in either order, and a context
            moved = min(size for size, _ in arrays[:2])
            yield operation, moved * sum(on_device for _, on_device in arrays[:2])
        else:
            given = _OPERAND.findall(operation["given"].partition("), ")[0])
            yield operation, sizes[name] + sum(sizes.get(one, 0) for one in given)


def _operations(text: str) -> Iterator[re.Match[str]]:
    """The operations of a module's entry, each of which is a kernel: what stands inside of fusions moves nothing."""
    entry = text.partition("\nENTRY ")[2]
    for line in entry.splitlines():
        if operation := _OPERATION.match(line):
            yield operation


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether they lie in device memory) of each array of a shape."""
    return [(_size(dtype, sides), not _ELSEWHERE.search(layout)) for dtype, sides, layout in _ARRAY.findall(shape)]


def _size(dtype: str, shape: str) -> int:
    bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])
    return math.ceil(bits * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)) / 8)


def _group(line: str) -> int:
    """How many devices take part, in any of the three forms in which XLA writes it."""
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if counted := _COUNTED.search(line):
        return int(counted[2])
    if mesh := _MESH.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", mesh[2]))
    return 0
