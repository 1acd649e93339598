"""Who is signed in.

A browser holds a random key in its local storage, which belongs to one origin: unlike a cookie it
is never sent along by itself, neither to other sites nor to workloads on other ports of this host.
The credential it stands for is kept here, sealed with that key: the files alone reveal nothing, and
a provider that was restarted knows its visitors again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LIFETIME = 12 * 3600.0
"""Seconds after which one has to sign in again."""

MOST = 1000
"""Sessions kept; the oldest go."""

KEY_BYTES = 32
NONCE_BYTES = 12


class Credential(msgspec.Struct, frozen=True):
    """``secret`` is the operator's token, a tenant's token, or an account's secret bytes in hex."""

    kind: Literal["operator", "token", "account"]
    secret: str
    owner: str = ""
    name: str = ""
    algorithm: Literal["secp256k1", "ed25519"] = "secp256k1"


class Sessions:
    """Sealed credentials, a file each in ``folder``. Times are seconds UTC."""

    def __init__(self, folder: Path, lifetime: float = LIFETIME) -> None:
        self.folder = folder
        self.lifetime = lifetime

    def open(self, credential: Credential, now: float) -> str:
        """Keep a credential; returns the key, which is kept nowhere here."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.tidy(now)
        key = secrets.token_bytes(KEY_BYTES)
        nonce = secrets.token_bytes(NONCE_BYTES)
        file = self._file(key)
        box = AESGCM(_sealing(key)).encrypt(nonce, msgspec.json.encode(credential), None)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(nonce + box)
        os.utime(file, (now, now))
        if os.geteuid() == 0:  # made by root for a provider that runs as somebody else
            owner = self.folder.parent.stat()
            for made in (self.folder, file):
                os.chown(made, owner.st_uid, owner.st_gid)
        return base64.urlsafe_b64encode(key).decode().rstrip("=")

    def find(self, text: str, now: float) -> Credential | None:
        """The credential of a key; None when there is none, or it is too old."""
        key = _key(text)
        if key is None:
            return None
        file = self._file(key)
        try:
            opened = file.stat().st_mtime
            data = file.read_bytes()
        except OSError:
            return None
        if now - opened > self.lifetime:
            file.unlink(missing_ok=True)
            return None
        try:
            plain = AESGCM(_sealing(key)).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
            return msgspec.json.decode(plain, type=Credential)
        except (InvalidTag, msgspec.MsgspecError):
            return None

    def until(self, text: str) -> float:
        """When a session ends, seconds UTC; 0 when there is none."""
        key = _key(text)
        try:
            return 0.0 if key is None else self._file(key).stat().st_mtime + self.lifetime
        except OSError:
            return 0.0

    def close(self, text: str) -> None:
        """Forget a session."""
        key = _key(text)
        if key is not None:
            self._file(key).unlink(missing_ok=True)

    def tidy(self, now: float) -> None:
        """Remove what is too old or too much."""
        files = sorted(self.folder.glob("*.session"), key=lambda f: f.stat().st_mtime)
        for at, file in enumerate(files):
            with contextlib.suppress(OSError):
                old = now - file.stat().st_mtime > self.lifetime
                if old or at < len(files) - MOST:
                    file.unlink()

    def _file(self, key: bytes) -> Path:
        return self.folder / f"{hashlib.sha256(b'name' + key).hexdigest()}.session"


def _sealing(key: bytes) -> bytes:
    return hashlib.sha256(b"seal" + key).digest()


def _key(text: str) -> bytes | None:
    try:
        key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, TypeError):
        return None
    return key if len(key) == KEY_BYTES else None
