"""A Python service out of the keeper's own interpreter. Standard library only.

A service that is a script of this interpreter without other packages (``{python} -S …``) need not
load the interpreter and its library again: the forked keeper has them. It forgets what the keeper
was and runs the script as its main program, which takes a fifth of the time. Whatever looks at the
process from outside sees the command it stands for.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import os
import signal
import sys
import threading
import types
from typing import NoReturn

LIBRARY = [path for path in sys.path if path.startswith(sys.base_prefix)]


def can_run(argv: list[str]) -> bool:
    """Whether ``argv`` is a script for this very interpreter, which was not replaced since."""
    if len(argv) < 3 or argv[0] != sys.executable or argv[1] != "-S" or argv[2][:1] != "/":
        return False
    try:
        mine, theirs = os.stat("/proc/self/exe"), os.stat(argv[0])
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)


def run(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Be ``argv`` under ``env``; standard descriptors, limits and signals are set already."""
    code = 1
    try:
        _forget(argv, env)
        with open(argv[2], "rb") as file:
            source = file.read()
        main = types.ModuleType("__main__")
        main.__file__ = argv[2]
        sys.modules["__main__"] = main
        exec(compile(source, argv[2], "exec"), main.__dict__)
        code = 0
    except SystemExit as exit:
        code = _code(exit.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forget(argv: list[str], env: dict[str, str]) -> None:
    """Nothing of the keeper is to be seen: environment, arguments, paths, modules, signals."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "leasehold"]:
        # What is on disk counts, which may be newer than this keeper.
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv[2:]
    extra = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [os.path.dirname(argv[2]), *extra, *LIBRARY]
    sys.path_importer_cache.clear()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = _unbuffered(1, "surrogateescape")
    sys.stderr = _unbuffered(2, "backslashreplace")
    _show(argv)


def _unbuffered(fd: int, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", errors, write_through=True)


def _show(argv: list[str]) -> None:
    """Put ``argv`` where ``ps`` looks, as far as there is room."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    text = b"\0".join(os.fsencode(word) for word in argv)[: max(0, room - 1)]
    if start and room > 0:
        ctypes.memmove(start, text.ljust(room, b"\0"), room)


def _code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1
