"""Secrets of manifests at rest: environment values and registry passwords are sealed in place.

A sealed value is ``sealed:v1:`` and base64 of a nonce and AES-256-GCM ciphertext, bound to the
deployment it belongs to, so that it opens nowhere else. Everything around it stays readable. The
key is a file of 32 bytes that is made once and is part of a backup.
"""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.ids import entropy
from leasehold.model.manifest import ManifestGroup

PREFIX = "sealed:v1:"
KEY_BYTES = 32
_NONCE = 12


class Vault:
    """Seals and opens. ``key`` is 32 bytes; see :meth:`ensure` for a key file."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LeaseholdError(
                "vault_key",
                f"a vault key has {KEY_BYTES} bytes",
                kind=Kind.INTERNAL,
                expected=KEY_BYTES,
                got=len(key),
            )
        self._aead = AESGCM(key)

    @classmethod
    def ensure(cls, path: Path) -> Vault:
        """The vault of the key file ``path``, which is made (mode 0600) when it is not there."""
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)  # the first of two starters wins; both read its key
            except FileExistsError:
                pass
            fresh.unlink()
            key = path.read_bytes()
        return cls(key)

    def seal(self, text: str, where: str) -> str:
        nonce = entropy.take(_NONCE)
        data = nonce + self._aead.encrypt(
            nonce, text.encode("utf-8", "surrogatepass"), _bound_to(where)
        )
        return PREFIX + base64.b64encode(data).decode()

    def open(self, text: str, where: str) -> str:
        """The clear text of a sealed value; what is not sealed comes back as it is."""
        if not text.startswith(PREFIX):
            return text
        try:
            data = base64.b64decode(text[len(PREFIX) :], validate=True)
            clear = self._aead.decrypt(data[:_NONCE], data[_NONCE:], _bound_to(where))
            return clear.decode("utf-8", "surrogatepass")
        except (ValueError, InvalidTag):
            raise LeaseholdError(
                "sealed_secret",
                f"a secret of {where} cannot be opened: was the vault key replaced?",
                kind=Kind.INTERNAL,
            ) from None

    def seal_group(self, group: ManifestGroup, where: str) -> dict[str, Any]:
        """The group as JSON with its secrets sealed for ``where`` (a lease or deployment id)."""
        out: dict[str, Any] = msgspec.to_builtins(group)
        self._walk(out, lambda text: self.seal(text, where))
        return out

    def open_group(self, group: dict[str, Any], where: str) -> ManifestGroup:
        """The inverse of :meth:`seal_group`."""
        copy: dict[str, Any] = msgspec.to_builtins(group)
        copy["services"] = [dict(service) for service in copy.get("services") or ()]
        self._walk(copy, lambda text: self.open(text, where))
        return msgspec.convert(copy, ManifestGroup)

    def _walk(self, group: dict[str, Any], change: Any) -> None:
        for service in group.get("services") or ():
            env = service.get("env")
            if env:
                service["env"] = [_change_value(entry, change) for entry in env]
            holders = [service, service.get("params") or {}]
            for holder in holders:
                credentials = holder.get("credentials")
                if credentials and credentials.get("password"):
                    holder["credentials"] = {
                        **credentials,
                        "password": change(credentials["password"]),
                    }


def _bound_to(where: str) -> bytes:
    """``owner/dseq`` of a deployment's, group's, order's or lease's id."""
    return "/".join(where.split("/")[:2]).encode()


def _change_value(entry: str, change: Any) -> str:
    name, equals, value = entry.partition("=")
    return f"{name}={change(value)}" if equals and value else entry
