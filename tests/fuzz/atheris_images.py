"""Coverage-guided fuzzing of what registries and peers send.

Run it by hand: ``python tests/fuzz/atheris_images.py TARGET [libFuzzer options] [CORPUS]`` with
TARGET one of layer, manifest, http, certificate. Anything but a LeaseholdError is a finding.
"""

from __future__ import annotations

import io
import sys
import tarfile

import atheris

with atheris.instrument_imports(include=["leasehold.images", "leasehold.model"]):
    from leasehold.core.errors import LeaseholdError
    from leasehold.images import challenge, oci, peertls, ranges, serving
    from leasehold.images.lower import LowerLayers
    from leasehold.images.tarstream import LayerFilter


class Bytes:
    """A ``Source`` over what the fuzzer made."""

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self.stream.read(size)

    def copy(self, size: int, write: object) -> bool:
        data = self.stream.read(size)
        write(memoryview(data))  # type: ignore[operator]
        return len(data) == size


def seal(data: bytes) -> bytes:
    """Right checksums in every record, or the fuzzer would never get past the first."""
    raw = bytearray(data)
    for at in range(0, len(raw) - 511, 512):
        raw[at + 148 : at + 156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % (sum(raw[at : at + 512]) & 0o777777)
    return bytes(raw)


def fuzz_layer(data: bytes) -> None:
    out = io.BytesIO()
    layer = LayerFilter(
        Bytes(seal(data)), out.write, LowerLayers([]), max_bytes=1 << 20, max_entries=200
    )
    try:
        layer.run()
    except LeaseholdError:
        return
    # What we write must read back, and every name must stay inside.
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), errors="surrogateescape") as tar:
        for member in tar:
            parts = member.name.split("/")
            assert ".." not in parts and not member.name.startswith("/"), member.name
            assert not member.isblk()
            assert not member.ischr() or (member.devmajor, member.devminor) == (0, 0)


def fuzz_manifest(data: bytes) -> None:
    for parse in (oci.parse_manifest, oci.parse_config):
        try:
            found = parse(data)
        except LeaseholdError:
            continue
        if isinstance(found, oci.Manifest):
            oci.children(found)
        if isinstance(found, oci.Index):
            try:
                oci.choose(found)
            except LeaseholdError:
                pass
    oci.media_type_of(data)


def fuzz_http(data: bytes) -> None:
    text = data.decode("latin-1")
    challenge.parse_challenge(text)
    serving.parse_path(text)
    for size in (0, 1, 1000):
        for clamp in (False, True):
            try:
                span = ranges.parse(data, size, clamp=clamp)
            except ranges.Unsatisfiable:
                continue
            assert span is not None and 0 <= span[0] < span[1] <= size


def fuzz_certificate(data: bytes) -> None:
    assert peertls.peer_id_of(data, 1_800_000_000.0) is None


if __name__ == "__main__":
    targets = {
        "layer": fuzz_layer,
        "manifest": fuzz_manifest,
        "http": fuzz_http,
        "certificate": fuzz_certificate,
    }
    atheris.Setup(sys.argv, targets[sys.argv.pop(1)])
    atheris.Fuzz()
