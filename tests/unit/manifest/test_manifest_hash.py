"""The canonical JSON and the version hash: byte for byte what every other implementation hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.model import manifest as m

DATA = Path(__file__).parents[2] / "data" / "sdl"

TETRIS: list[dict[str, Any]] = [
    {
        "name": "akash",
        "services": [
            {
                "name": "tetris",
                "image": "bsord/tetris",
                "command": None,
                "args": None,
                "env": None,
                "resources": {
                    "id": 1,
                    "cpu": {"units": {"val": "1000"}},
                    "memory": {"size": {"val": "536870912"}},
                    "storage": [{"name": "default", "size": {"val": "536870912"}}],
                    "gpu": {"units": {"val": "0"}},
                    "endpoints": [{"sequence_number": 0}],
                },
                "count": 1,
                "expose": [
                    {
                        "port": 80,
                        "externalPort": 80,
                        "proto": "TCP",
                        "service": "",
                        "global": True,
                        "hosts": None,
                        "httpOptions": {
                            "maxBodySize": 1048576,
                            "readTimeout": 60000,
                            "sendTimeout": 60000,
                            "nextTries": 3,
                            "nextTimeout": 0,
                            "nextCases": ["error", "timeout"],
                        },
                        "ip": "",
                        "endpointSequenceNumber": 0,
                    }
                ],
                "credentials": None,
            }
        ],
    }
]
VECTOR = "ee52e329aa45b0638c27065d52eb0dc92f6704194bc63c6435c56fb549dded7d"


def reference(value: Any) -> bytes:
    """The rule in one line of the standard library."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def hash_of(value: Any) -> str:
    return m.version_hash(m.decode(json.dumps(value).encode())).hex()


def test_the_published_vector() -> None:
    assert hash_of(TETRIS) == VECTOR


@pytest.mark.parametrize("path", sorted(DATA.glob("valid/*/*/manifest.json")), ids=str)
def test_canonical_equals_the_rule_for_every_example(path: Path) -> None:
    raw = path.read_bytes()
    assert m.canonical(m.decode(raw)) == reference(json.loads(raw))


def test_unknown_keys_and_formatting_do_not_matter() -> None:
    noisy = json.loads(json.dumps(TETRIS))
    noisy[0]["x"] = noisy[0]["services"][0]["y"] = {"deep": [1]}
    assert m.version_hash(m.decode(json.dumps(noisy, indent=3).encode())).hex() == VECTOR


def test_absent_keys_are_zeros_and_zeros_are_written_only_where_they_always_are() -> None:
    expose = json.loads(m.canonical(m.decode(b'[{"services":[{"expose":[{}]}]}]')))[0]["services"][
        0
    ]
    assert expose["credentials"] is None and expose["command"] is None and "params" not in expose
    assert expose["resources"] == {"id": 0, "endpoints": None}
    assert expose["expose"][0] == {
        "port": 0,
        "externalPort": 0,
        "proto": "",
        "service": "",
        "global": False,
        "hosts": None,
        "ip": "",
        "endpointSequenceNumber": 0,
        "httpOptions": {
            "maxBodySize": 0,
            "readTimeout": 0,
            "sendTimeout": 0,
            "nextTries": 0,
            "nextTimeout": 0,
        },
    }


def test_null_and_empty_arrays_hash_differently() -> None:
    empty = json.loads(json.dumps(TETRIS))
    empty[0]["services"][0]["command"] = []
    assert hash_of(empty) != hash_of(TETRIS)


def test_what_is_left_out_when_empty_does_not_change_the_hash() -> None:
    verbose = json.loads(json.dumps(TETRIS))
    resources = verbose[0]["services"][0]["resources"]
    resources["cpu"]["attributes"] = []
    resources["storage"][0]["attributes"] = None
    resources["endpoints"][0]["kind"] = 0
    verbose[0]["services"][0]["expose"][0]["httpOptions"]["proxyBufferSize"] = 0
    verbose[0]["services"][0]["params"] = None
    assert hash_of(verbose) == hash_of(TETRIS)


def test_nulls_are_zeros_a_tail_is_ignored_and_broken_utf8_is_replaced() -> None:
    nulls = json.loads(json.dumps(TETRIS))
    nulls[0]["services"][0]["expose"][0]["ip"] = None
    nulls[0]["services"][0]["expose"][0]["endpointSequenceNumber"] = None
    raw = json.dumps(nulls).encode()
    assert m.version_hash(m.decode(raw)).hex() == VECTOR
    assert m.version_hash(m.decode(json.dumps(TETRIS).encode() + b" {not json")).hex() == VECTOR
    assert m.decode(b"null") == []
    # Each broken byte becomes one U+FFFD, as in Go; Python alone would fold them into one.
    assert m.decode(b'[{"name":"\xf0\x9f\x98"}]')[0].name == "\ufffd" * 3
    assert m.decode(b'[{"name":"\\ud83d"}]')[0].name == "\ufffd"


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_every_text_is_escaped_as_the_rule_says(text: str) -> None:
    group = m.ManifestGroup(name=text, services=None)
    assert m.canonical([group]) == reference([{"name": text, "services": None}])


@given(st.binary(max_size=200))
def test_whatever_arrives_is_decoded_or_refused(data: bytes) -> None:
    try:
        manifest = m.decode(data)
    except LeaseholdError:
        return
    again = m.decode(m.canonical(manifest))
    assert m.version_hash(again) == m.version_hash(manifest)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("manifest_undecodable", b""),
        ("manifest_undecodable", b"{}"),
        ("manifest_undecodable", b"[NaN]"),
        ("manifest_undecodable", b'[{"name": 5}]'),
        ("manifest_undecodable", b'[{"services":[{"count":-1}]}]'),
        ("manifest_undecodable", b'[{"services":[{"count":1.5}]}]'),
        ("manifest_undecodable", b'[{"services":[{"resources":{"cpu":{"units":{"val":"1e3"}}}}]}]'),
        ("json_too_deep", b"[" * 100_000),
        ("manifest_too_large", b" " * 300_000),
    ],
)
def test_refused_with_a_reason(code: str, data: bytes) -> None:
    with pytest.raises(LeaseholdError) as caught:
        m.decode(data)
    assert caught.value.code == code


def test_a_mistake_names_its_path() -> None:
    with pytest.raises(LeaseholdError) as caught:
        m.decode(b'[{"services":[{"expose":[{"port":"80"}]}]}]')
    assert caught.value.path == "[0].services[0].expose[0].port" or caught.value.path == (
        "[...].services[...].expose[...].port"
    )
