"""The proxy's admin socket: a command is one line, its reply everything until the proxy closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable

REPLY_SECONDS = 10.0
"""How long the proxy may take to answer."""

BATCH = 40
"""Commands in one line: the proxy reads at most 16 KiB at once."""

PAYLOAD_BYTES = 15_000
"""Bytes of a payload (a certificate) that fit one command."""

NOTICES = ("IP changed", "no need to change", "port changed")

GOOD = ("New empty certificate", "Transaction created", "Transaction updated", "Committing",
        "Success!", "Inserting certificate", "Entry", "Certificate")  # fmt: skip
"""How replies to good certificate commands begin; they are followed by progress dots."""


class Admin:
    """Commands through ``folder``/admin.sock."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock

    def bind(self) -> socket.socket:
        """The listening end, for the proxy to inherit."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            with self._directory() as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.folder / "admin.sock")
                sock.bind(f"/proc/self/fd/{folder}/admin.sock")
            os.chmod(self.folder / "admin.sock", 0o600)
            sock.listen(64)
        except BaseException:
            sock.close()
            raise
        return sock

    async def ask(self, line: str) -> str:
        """The reply to one command."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock, self._directory() as folder:
            sock.setblocking(False)
            try:
                async with self.clock.timeout(REPLY_SECONDS):
                    await loop.sock_connect(sock, f"/proc/self/fd/{folder}/admin.sock")
                    await loop.sock_sendall(sock, line.encode() + b"\n")
                    reply = bytearray()
                    while chunk := await loop.sock_recv(sock, 65536):
                        reply += chunk
            except (OSError, TimeoutError) as error:
                raise unavailable(
                    "ingress_away", f"the proxy's admin socket does not answer: {error!r}"
                ) from None
        return reply.decode(errors="replace").strip()

    async def must(self, *lines: str) -> None:
        """Commands whose only good reply is silence (or a notice of what was done).

        They go in one line, so they take effect together and cost one connection.
        """
        for first in range(0, len(lines), BATCH):
            batch = lines[first : first + BATCH]
            reply = await self.ask("; ".join(batch))
            for line in reply.splitlines():
                if line and not line.startswith(NOTICES):
                    raise _refused(line, batch)

    async def must_take(self, line: str, payload: str = "") -> None:
        """A certificate command, whose good replies are words; raises for any other."""
        if payload:
            line = f"{line} <<\n{payload.rstrip()}\n"
        reply = await self.ask(line)
        for said in reply.splitlines():
            if said.strip(" .") and not said.startswith(GOOD):
                raise _refused(said, [line.partition("\n")[0]])

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        """Our folder as a descriptor: a socket's own path may have 107 bytes only."""
        fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _refused(reply: str, commands: object) -> LeaseholdError:
    return LeaseholdError(
        "ingress_refused",
        f"haproxy answered {reply!r} to one of {commands!r}",
        kind=Kind.INTERNAL,
    )
