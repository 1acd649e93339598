"""What strangers send may be refused and nothing else: no crash, no hang, bounded memory."""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.gateway import jwt
from leasehold.manifest import crosscheck
from leasehold.model import manifest, sdl, shape

DATA = Path(__file__).parents[1] / "data"
EXAMPLES = sorted((DATA / "sdl").glob("**/*.yaml"))
SECONDS = 15
MEGABYTES = 1024

WORDS = st.sampled_from(
    [
        "version",
        "services",
        "profiles",
        "compute",
        "placement",
        "deployment",
        "image",
        "expose",
        "port",
        "as",
        "to",
        "global",
        "count",
        "resources",
        "cpu",
        "units",
        "memory",
        "size",
        "storage",
        "gpu",
        "attributes",
        "pricing",
        "denom",
        "amount",
        "profile",
        "2.0",
        "2.1",
        "web",
        "100m",
        "64Mi",
        "80",
        "true",
        "null",
        "uakt",
        "endpoints",
        "ip",
        "params",
        "mount",
        "persistent",
        "class",
        "ram",
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    WORDS | st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=30,
)


@given(VALUES)
def test_any_yaml_is_read_or_refused(value: Any) -> None:
    for violation in sdl.validate(yaml.safe_dump(value)):
        assert violation.code and violation.message


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        inner = [p for k, v in value.items() for p in paths(v, (*prefix, k))]
    elif isinstance(value, list):
        inner = [p for i, v in enumerate(value) for p in paths(v, (*prefix, i))]
    return [prefix, *inner] if prefix else inner


@settings(max_examples=300)
@given(st.data())
def test_an_example_with_a_part_replaced_is_read_or_refused(data: st.DataObject) -> None:
    document = yaml.safe_load(data.draw(st.sampled_from(EXAMPLES)).read_text())
    *parents, last = data.draw(st.sampled_from(paths(document)))
    target = document
    for step in parents:
        target = target[step]
    target[last] = data.draw(VALUES)
    text = yaml.safe_dump(document)
    if not sdl.validate(text):
        loaded = sdl.load(text)
        assert shape.violations(loaded.manifest()) == []
        assert crosscheck.violations(loaded.manifest(), loaded.groups()) == []


@given(st.binary(max_size=400))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    try:
        decoded = manifest.decode(data)
    except LeaseholdError:
        return
    shape.violations(decoded)


def _part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@given(st.binary(max_size=80), st.binary(max_size=200), st.binary(max_size=80))
def test_any_three_parts_are_a_token_or_refused(head: bytes, body: bytes, tail: bytes) -> None:
    try:
        jwt.parse(f"{_part(head)}.{_part(body)}.{_part(tail)}")
    except LeaseholdError:
        return


@pytest.mark.fuzz
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris: Python < 3.13")
@pytest.mark.parametrize("target", ["sdl", "manifest", "token"])
def test_coverage_guided(target: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = {
        "sdl": [p.read_bytes() for p in EXAMPLES],
        "manifest": [p.read_bytes() for p in (DATA / "sdl").glob("**/manifest.json")],
        "token": [b"eyJhbGciOiJFUzI1NksifQ.eyJpc3MiOiJhIn0.AAAA"],
    }[target]
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("atheris_intake.py")),
            target,
            f"-max_total_time={SECONDS}",
            f"-rss_limit_mb={MEGABYTES}",
            "-timeout=5",
            "-max_len=20000",
            f"-artifact_prefix={tmp_path}/",
            str(corpus),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
