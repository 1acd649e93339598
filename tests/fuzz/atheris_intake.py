"""Coverage-guided fuzzing of what strangers send: SDL, manifests, tokens.

Run it by hand: ``python tests/fuzz/atheris_intake.py TARGET [libFuzzer options] [CORPUS]`` with
TARGET one of sdl, manifest, token. Anything but a LeaseholdError is a finding.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["leasehold.model", "leasehold.gateway"]):
    from leasehold.core.errors import LeaseholdError
    from leasehold.gateway import claims, jwt
    from leasehold.model import manifest, sdl, shape


def fuzz_sdl(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    violations = sdl.validate(text)
    if not violations:
        loaded = sdl.load(text)
        again = manifest.decode(manifest.canonical(loaded.manifest()), limit=1 << 30)
        assert manifest.version_hash(again) == loaded.hash


def fuzz_manifest(data: bytes) -> None:
    try:
        decoded = manifest.decode(data)
    except LeaseholdError:
        return
    shape.violations(decoded)
    again = manifest.decode(manifest.canonical(decoded), limit=1 << 30)
    assert manifest.version_hash(again) == manifest.version_hash(decoded)


def fuzz_token(data: bytes) -> None:
    try:
        token = jwt.parse(data.decode("utf-8", "replace"))
    except LeaseholdError:
        return
    claims.check(token.claims)


if __name__ == "__main__":
    target = {"sdl": fuzz_sdl, "manifest": fuzz_manifest, "token": fuzz_token}[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
