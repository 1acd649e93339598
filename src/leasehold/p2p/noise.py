"""Noise_XX_25519_ChaChaPoly_SHA256 (Noise revision 34): two strangers agree on two keys.

Three messages::

    -> e                      my ephemeral key
    <- e, ee, s, es           yours; your static key, encrypted
    -> s, se                  my static key, encrypted

Every key and every ciphertext is mixed into one running hash, so whoever changes a byte anywhere
makes the next decryption fail. Nothing here knows of sockets or libp2p: bytes in, bytes out.
Primitives come from ``cryptography``; the steps are checked against published vectors.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PROTOCOL = b"Noise_XX_25519_ChaChaPoly_SHA256"
MAX_MESSAGE = 65535
"""Bytes of one Noise message, tag included (Noise section 3)."""

TAG = 16
MAX_PLAINTEXT = MAX_MESSAGE - TAG
KEY = 32
MAX_NONCE = 2**64 - 1
"""Reserved by Noise; a cipher that reaches it must not be used again."""


class NoiseError(ValueError):
    """A handshake or transport message that does not verify. The connection is lost."""


class Cipher:
    """One direction: a key and a counter. ``ad`` is only used during the handshake."""

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    def _next(self) -> bytes:
        nonce = self._nonce
        if nonce >= MAX_NONCE:
            raise NoiseError("the nonce is used up")
        self._nonce = nonce + 1
        return b"\0\0\0\0" + nonce.to_bytes(8, "little")

    def encrypt(self, plaintext: bytes, ad: bytes | None = None) -> bytes:
        return self._aead.encrypt(self._next(), plaintext, ad)

    def decrypt(self, ciphertext: bytes, ad: bytes | None = None) -> bytes:
        try:
            return self._aead.decrypt(self._next(), ciphertext, ad)
        except InvalidTag:
            raise NoiseError("a message does not decrypt") from None


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")


class Handshake:
    """One side of XX. Initiator: write, read, write; responder: read, write, read; then split.

    ``static`` is this side's long-lived X25519 key; ``ephemeral`` is drawn unless a test gives it.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: X25519PrivateKey,
        ephemeral: X25519PrivateKey | None = None,
        prologue: bytes = b"",
    ) -> None:
        self.initiator = initiator
        self._static = static
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._hash = PROTOCOL  # exactly 32 bytes, so it is its own first hash
        self._chaining_key = PROTOCOL
        self._cipher: Cipher | None = None
        self._remote_ephemeral: X25519PublicKey | None = None
        self._remote_static: X25519PublicKey | None = None
        self._step = 0
        self._mix_hash(prologue)

    @property
    def hash(self) -> bytes:
        """The transcript's hash, equal on both sides once the handshake is done."""
        return self._hash

    @property
    def remote_static(self) -> bytes:
        if self._remote_static is None:
            raise NoiseError("the other side's static key is not known yet")
        return self._remote_static.public_bytes_raw()

    def write(self, payload: bytes = b"") -> bytes:
        """The next message of this side, carrying ``payload``."""
        self._expect(sends=True)
        out = b""
        if self._step < 2:
            public = self._ephemeral.public_key().public_bytes_raw()
            self._mix_hash(public)
            out += public
        if self._step == 1:
            self._mix_dh(self._ephemeral, self._remote_ephemeral)
            out += self._encrypt(self._static.public_key().public_bytes_raw())
            self._mix_dh(self._static, self._remote_ephemeral)
        elif self._step == 2:
            out += self._encrypt(self._static.public_key().public_bytes_raw())
            self._mix_dh(self._static, self._remote_ephemeral)
        out += self._encrypt(payload)
        self._step += 1
        return out

    def read(self, message: bytes) -> bytes:
        """The payload of the other side's next message; :class:`NoiseError` when it is forged."""
        self._expect(sends=False)
        if len(message) > MAX_MESSAGE:
            raise NoiseError("message too long")
        if self._step < 2:
            public, message = message[:KEY], message[KEY:]
            if len(public) < KEY:
                raise NoiseError("message too short")
            self._remote_ephemeral = X25519PublicKey.from_public_bytes(public)
            self._mix_hash(public)
        if self._step == 1:
            self._mix_dh(self._ephemeral, self._remote_ephemeral)
        if self._step >= 1:
            sealed, message = message[: KEY + TAG], message[KEY + TAG :]
            self._remote_static = X25519PublicKey.from_public_bytes(self._decrypt(sealed))
            self._mix_dh(self._ephemeral, self._remote_static)
        payload = self._decrypt(message)
        self._step += 1
        return payload

    def split(self) -> tuple[Cipher, Cipher]:
        """``(send, receive)`` once all three messages have passed."""
        if self._step != 3:
            raise NoiseError("the handshake is not finished")
        first, second = _hkdf(self._chaining_key, b"")
        mine, theirs = (first, second) if self.initiator else (second, first)
        return Cipher(mine), Cipher(theirs)

    def _expect(self, *, sends: bool) -> None:
        if self._step > 2 or sends != (self.initiator == (self._step % 2 == 0)):
            raise NoiseError("out of turn")

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_dh(self, private: X25519PrivateKey, public: X25519PublicKey | None) -> None:
        assert public is not None
        try:
            shared = private.exchange(public)
        except ValueError:
            # An all-zero result: the other side sent a point of low order to fix our key.
            raise NoiseError("the other side's key is a point of low order") from None
        self._chaining_key, key = _hkdf(self._chaining_key, shared)
        self._cipher = Cipher(key)

    def _encrypt(self, plaintext: bytes) -> bytes:
        out = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self._hash)
        self._mix_hash(out)
        return out

    def _decrypt(self, ciphertext: bytes) -> bytes:
        out = ciphertext
        if self._cipher is not None:
            if len(ciphertext) < TAG:
                raise NoiseError("message too short")
            out = self._cipher.decrypt(ciphertext, self._hash)
        self._mix_hash(ciphertext)
        return out
