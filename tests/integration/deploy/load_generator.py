"""Requests at a steady rate from a process of its own: ``load_generator.py PORT HOST RATE``.

Open loop: what is due is sent, answered or not what was sent before, so a path that stalls is asked
as often as one that does not. Connections are kept and used again; every tenth request has one of
its own. Ends when its input does, waits for what is still out, and prints as JSON the answers as
``[status, body, count]``, the rate that was sent and the slowest answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

TICK = 0.004
"""Seconds between looks at what is due."""

PATIENCE = 60.0
"""Seconds for an answer: a request that waits in a full backlog is late, not lost."""

ALONE = 10


class Connection(asyncio.Protocol):
    """One request at a time; the answer has a Content-Length or ends with the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.answer: asyncio.Future[tuple[int, str]] | None = None
        self.data = b""
        self.open = True

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, str]]:
        self.answer, self.data = asyncio.get_running_loop().create_future(), b""
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found or self.answer is None or self.answer.done():
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        if at >= 0 and len(body) >= int(lower[at + 15 :].split(b"\r\n", 1)[0]):
            if b"connection: close" in lower:
                self.open = False
            self._done(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.answer is not None and not self.answer.done():
            if self.data:
                self._done(self.data.partition(b"\r\n\r\n")[2])
            else:
                self.answer.set_result((0, repr(exc)))

    def _done(self, body: bytes) -> None:
        assert self.answer is not None
        status = int(self.data.split(b" ", 2)[1])
        self.answer.set_result((status, body.decode(errors="replace")))


class Load:
    def __init__(self, port: int, host: str) -> None:
        self.port = port
        self.kept = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.alone = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        self.idle: list[Connection] = []
        self.answers: Counter[tuple[int, str]] = Counter()
        self.slowest = 0.0

    async def one(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        alone = number % ALONE == 0
        try:
            async with asyncio.timeout(PATIENCE):
                connection = None if alone else self._take()
                if connection is None:
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
                    used = False
                else:
                    used = True
                found = await connection.ask(self.alone if alone else self.kept)
                if found[0] == 0 and used:
                    # A kept connection may be closed by the other side at any time; every client
                    # sends the request again on a new one (RFC 9110, 9.2.2).
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
                    found = await connection.ask(self.kept)
            if connection.open and not alone:
                self.idle.append(connection)
            else:
                connection.transport.close()
        except (OSError, TimeoutError) as error:
            found = (0, repr(error))
        self.slowest = max(self.slowest, loop.time() - began)
        self.answers[found] += 1

    def _take(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.open:
                return connection
        return None


async def main(port: int, host: str, rate: float) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    load, pending, sent, seconds = Load(port, host), set(), 0, 1.0
    began = loop.time()
    ending = False
    while not ending:
        ending = ended.done()  # and what is due until now is sent still
        due = int((loop.time() - began) * rate)
        for number in range(sent, due):
            task = loop.create_task(load.one(number))
            pending.add(task)
            task.add_done_callback(pending.discard)
        sent, seconds = due, loop.time() - began
        await asyncio.sleep(TICK)
    if pending:
        await asyncio.wait(pending)
    answers = [[status, body, count] for (status, body), count in load.answers.items()]
    print(json.dumps({"answers": answers, "rate": sent / seconds, "slowest": load.slowest}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
