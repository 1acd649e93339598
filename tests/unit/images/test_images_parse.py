"""References, digests, ranges, paths and manifests: right, or refused in plain words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.images import oci, ranges, serving
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("acme/web", "docker.io/acme/web:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("ghcr.io/acme/web", "ghcr.io/acme/web:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("127.0.0.1:5055/t/bb:1", "127.0.0.1:5055/t/bb:1"),
        (f"nginx@{SHA}", f"docker.io/library/nginx@{SHA}"),
        (f"r.example:5000/a/b:t@{SHA}", f"r.example:5000/a/b:t@{SHA}"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
    ],
)
def test_references(text: str, full: str) -> None:
    found = Reference.parse(text)
    assert str(found) == full
    assert Reference.parse(full) == found


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "UPPER", "a//b", "a:b:c", "x@sha256:abc", "http://r.example/x", "a/../b", "r.io/",
        "-a", "a" * 600, "x:" + "t" * 129, "r.example:99999999/x", "a b", "a\tb",
    ],
)  # fmt: skip
def test_no_references(text: str) -> None:
    with pytest.raises(LeaseholdError) as caught:
        Reference.parse(text)
    assert caught.value.code in ("reference_malformed", "digest_malformed")


@given(st.text(max_size=80))
def test_a_reference_is_parsed_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except LeaseholdError:
        return
    assert Reference.parse(str(found)) == found


@given(st.binary(max_size=40) | st.from_regex(rb"bytes=\d{0,5}-\d{0,5}", fullmatch=True),
       st.integers(0, 5000), st.booleans())  # fmt: skip
def test_a_range_lies_inside_or_does_not_apply(header: bytes, size: int, clamp: bool) -> None:
    try:
        span = ranges.parse(header, size, clamp=clamp)
    except ranges.Unsatisfiable:
        return
    assert span is not None and 0 <= span[0] < span[1] <= size


@given(st.text(max_size=200) | st.from_regex(r"/v2/[a-z/.:]{0,40}/(manifests|blobs)/.{0,90}"))
def test_a_path_has_parts_or_none(path: str) -> None:
    found = serving.parse_path(path)
    if found is not None:
        assert path == f"/v2/{found.repository}/{found.kind.path}/{found.target}"
        assert ".." not in found.repository


def test_the_repository_ends_at_the_last_word() -> None:
    found = serving.parse_path(f"/v2/a/blobs/b/manifests/{SHA}")
    assert found is not None and found.repository == "a/blobs/b"


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "layers", "config", "manifests", "digest", "size", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(json.map(msgspec.json.encode) | st.binary(max_size=100))
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    codes = set()
    for parse in (oci.parse_manifest, oci.parse_config):
        try:
            parse(content)
        except LeaseholdError as error:
            codes.add(error.code)
    assert codes <= {"manifest_invalid", "digest_malformed"}
    assert isinstance(oci.media_type_of(content), str)


def test_deep_json_does_not_end_the_process() -> None:
    for content in (b"[" * 2_000_000, b'{"a":' * 500_000):
        with pytest.raises(LeaseholdError):
            oci.parse_manifest(content)
        assert oci.media_type_of(content) == oci.OCTETS


def test_the_platform_is_chosen_or_said_to_be_missing() -> None:
    def entry(os: str, arch: str) -> dict[str, object]:
        return {"mediaType": oci.OCI_MANIFEST, "digest": str(Digest.of(arch.encode())), "size": 3,
                "platform": {"os": os, "architecture": arch}}  # fmt: skip

    raw = {"schemaVersion": 2, "manifests": [entry("unknown", "unknown"), entry("linux", "arm64"),
                                             entry("linux", "amd64")]}  # fmt: skip
    index = oci.parse_manifest(msgspec.json.encode(raw))
    assert isinstance(index, oci.Index)
    assert oci.choose(index, ("linux", "amd64")).digest == Digest.of(b"amd64")
    with pytest.raises(LeaseholdError, match="linux/amd64, linux/arm64"):
        oci.choose(index, ("linux", "s390x"))
