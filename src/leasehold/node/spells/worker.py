"""The process in which scripts run: ``python -m leasehold.node.spells.worker FD``.

It reads a job, evaluates it, answers, and waits for the next. Everything a script can do beyond
computing is a request to the node over the same socket; there is nothing else in here to reach.
The node kills the whole process when a run takes too long, and so does the kernel when it takes
too much memory or when the node is gone. Frames: 4 bytes of length, then JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

import starlark

MAX_FRAME = 16 << 20
MAX_CALL_STACK = 100
MAX_PRINT_LINES = 500
MAX_PRINT_BYTES = 256 << 10
"""Bytes a run may print; the rest is dropped and said so."""

PR_SET_PDEATHSIG = 1

PRELUDE = """
kv = struct(
    get_string = _get_string, set_string = _set_string, get_u32 = _get_u32, set_u32 = _set_u32,
    remove = _remove, exists = _exists, list_get = _list_get, list_push = _list_push,
    list_pop = _list_pop, list_remove = _list_remove, set_many = _set_many,
)
mailbox = struct(pop = _mailbox_pop, get = _mailbox_get)
"""

KV = (
    "get_string", "set_string", "get_u32", "set_u32", "remove", "exists", "list_get", "list_push",
    "list_pop", "list_remove", "set_many",
)  # fmt: skip


class Refusal(Exception):
    """The node refused a request of the script."""


class Worker:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.globals = starlark.Globals.extended_by(
            [starlark.LibraryExtension.StructType, starlark.LibraryExtension.Json]
        )
        self.dialect = starlark.Dialect.extended()
        self.dialect.enable_top_level_stmt = True
        self.dialect.enable_f_strings = True
        self.dialect.enable_load = False
        self.prelude = starlark.parse("prelude", PRELUDE, self.dialect)

    def serve(self) -> None:
        while (job := self.receive()) is not None:
            self.send({"done": self.run(job)})

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Evaluate one script; never raises."""
        lines: list[str] = []
        errors: list[tuple[str, str]] = []
        module = starlark.Module()
        self.bind(module, job, lines, errors)
        outcome, value = "ok", None
        try:
            ast = starlark.parse(job["name"], job["script"], self.dialect)
            starlark.eval(module, self.prelude, self.globals)
            options = starlark.EvalOptions(max_callstack_size=MAX_CALL_STACK)
            value = starlark.eval_with(options, module, ast, self.globals).value
            json.dumps(value)
        except (TypeError, ValueError):
            value = None  # A result that is no JSON is nobody's business.
        except BaseException as error:
            outcome = "error"
            errors.append(("script_failed", str(error)[-4000:]))
        return {
            "outcome": outcome if not errors else "error",
            "value": value,
            "logs": lines,
            "errors": errors,
        }

    def bind(
        self,
        module: Any,
        job: dict[str, Any],
        lines: list[str],
        errors: list[tuple[str, str]],
    ) -> None:
        for name, constant in job["names"].items():
            module[name] = constant
        printed = 0

        def write(*words: Any) -> None:
            nonlocal printed
            text = " ".join(word if isinstance(word, str) else repr(word) for word in words)
            room = MAX_PRINT_BYTES - printed
            if len(lines) >= MAX_PRINT_LINES or room <= 0:
                if lines and not lines[-1].startswith("… "):
                    lines.append("… more was printed than is kept")
                return
            lines.append(text[:room])
            printed += len(text)

        def call(service: str, function: str, *args: Any) -> Any:
            return self.ask("call", service, function, list(args))

        def try_call(service: str, function: str, *args: Any) -> Any:
            try:
                return {"ok": True, "value": call(service, function, *args), "error": ""}
            except Refusal as error:
                return {"ok": False, "value": None, "error": str(error)}

        def error(message: str, index: int = 0) -> None:
            errors.append((f"reported_{index}", str(message)[:4096]))

        module.add_callable("print", write)
        module.add_callable("call", call)
        module.add_callable("try_call", try_call)
        module.add_callable("error", error)
        module.add_callable("data", lambda key: self.ask("data", key))
        module.add_callable("response", lambda fields: self.ask("response", fields))
        module.add_callable("now", lambda: self.ask("now"))
        for name in KV:
            module.add_callable(f"_{name}", self.kv(name))
        module.add_callable("_mailbox_pop", lambda: self.ask("mailbox_pop"))
        module.add_callable("_mailbox_get", lambda: self.ask("mailbox_get"))

    def kv(self, name: str) -> Any:
        return lambda *args: self.ask("kv", name, *args)

    def ask(self, what: str, *args: Any) -> Any:
        """A request to the node; the script waits for the answer."""
        self.send({"ask": what, "args": args})
        answer = self.receive()
        if answer is None:
            os._exit(0)
        if "error" in answer:
            raise Refusal(answer["error"])
        return answer["value"]

    def send(self, message: dict[str, Any]) -> None:
        try:
            data = json.dumps(message).encode()
        except (TypeError, ValueError) as error:
            raise Refusal(f"only plain values can be passed: {error}") from None
        if len(data) > MAX_FRAME:
            raise Refusal(f"more than {MAX_FRAME} bytes")
        self.sock.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> dict[str, Any] | None:
        header = self._exactly(4)
        if header is None:
            return None
        body = self._exactly(struct.unpack(">I", header)[0])
        return None if body is None else json.loads(body)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            data = self.sock.recv(min(count - len(parts), 1 << 20))
            if not data:
                return None
            parts += data
        return bytes(parts)


def main() -> None:
    fd, memory_mb = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        return
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    Worker(socket.socket(fileno=fd)).serve()


if __name__ == "__main__":
    main()
