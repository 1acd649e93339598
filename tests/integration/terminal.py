"""A command of ours on a real terminal, for what only terminals are shown."""

from __future__ import annotations

import asyncio
import os
import pty
import sys


class Terminal:
    """A command of ours on a terminal of its own; what it draws can be waited for."""

    def __init__(self) -> None:
        self.drawn = ""
        self._more = asyncio.Event()

    async def run(self, *words: str, piped: bool = False) -> asyncio.subprocess.Process:
        """``piped``: standard output is not the terminal but a pipe, as in ``… | jq``."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", *words, stdin=theirs, stderr=theirs,
            stdout=asyncio.subprocess.PIPE if piped else theirs,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            try:
                self.drawn += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                loop.remove_reader(ours)
                os.close(ours)
            self._more.set()

        loop.add_reader(ours, readable)
        return process

    async def until(self, text: str) -> None:
        try:
            async with asyncio.timeout(30):
                while text not in self.drawn:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} was not drawn: {self.drawn[-2000:]!r}") from None
