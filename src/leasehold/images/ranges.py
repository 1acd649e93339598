"""One byte range of HTTP, read the strict way original agents expect.

``bytes=a-b``, ``bytes=a-`` and ``bytes=-n``; a range that starts or ends beyond the content, lists
and anything else do not apply (416). Stricter than HTTP asks (which clamps the end), on purpose:
an agent that asks for bytes that do not exist has the wrong size in mind.
"""

from __future__ import annotations

import re

_RANGE = re.compile(rb"bytes=(\d{0,19})-(\d{0,19})")


class Unsatisfiable(Exception):
    """Answer 416 with ``Content-Range: bytes */size``."""


def parse(header: bytes | None, size: int, *, clamp: bool = False) -> tuple[int, int] | None:
    """(start, end exclusive), None without a header; ``clamp`` shortens an end beyond the size.

    The mirror clamps, as HTTP says and its clients expect; the transfer does not.
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise Unsatisfiable
    first, last = match.groups()
    if not first:
        count = int(last or b"0")
        if clamp:
            count = min(count, size)
        if not 0 < count <= size:
            raise Unsatisfiable
        return size - count, size
    start, end = int(first), int(last) + 1 if last else size
    if clamp:
        end = min(end, size)
    if start >= size or end > size or end <= start:
        raise Unsatisfiable
    return start, end
