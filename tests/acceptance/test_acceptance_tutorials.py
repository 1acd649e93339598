"""The tutorials, followed to the letter: their code blocks are read from the page and run.

``sh`` blocks run one after another in one shell; those titled as another terminal run beside it and
go on until the page is done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```sh(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.M | re.S)
END = "--- end of block ---"


class Reader:
    """Somebody who types what a page says, with a folder of their own for the page's."""

    def __init__(self, page: str, folder: Path, own: str) -> None:
        text = (ROOT / "docs" / "tutorial" / page).read_text()
        # The page's folders are for people; several readers may be at work on this machine.
        self.blocks = [
            (found["title"] or "", found["code"].replace(own, str(folder / "own")))
            for found in BLOCK.finditer(text)
        ]
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        command = programs / "leasehold"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m leasehold "$@"\n')
        command.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=self.environment,
        )
        self.beside: list[subprocess.Popen[bytes]] = []
        self.exported: list[str] = []

    def type(self, code: str) -> str:
        """Run a block in the shell; its output. Every command must succeed."""
        self.exported += re.findall(r"^export .*$", code, re.M)
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"set -e -o pipefail\n{{\n{code}\n}} </dev/null\necho '{END}'\n")
        self.shell.stdin.flush()
        said = []
        for line in self.shell.stdout:
            if line.strip() == END:
                return "".join(said)
            said.append(line)
        raise AssertionError(f"this block failed:\n{code}\nand said:\n{''.join(said)}")

    def start(self, code: str) -> Path:
        """Run a block in another terminal."""
        log = self.folder / f"terminal-{len(self.beside)}.log"
        with log.open("wb") as out:
            self.beside.append(
                subprocess.Popen(
                    ["bash", "-c", "\n".join([*self.exported, f"exec {code.strip()}"])],
                    stdout=out,
                    stderr=out,
                    cwd=self.folder,
                    env=self.environment,
                )
            )
        return log

    def interrupt(self) -> None:
        """Ctrl-C in the other terminals."""
        for process in self.beside:
            process.send_signal(signal.SIGINT)
        for process in self.beside:
            process.wait(timeout=90)

    def close(self) -> None:
        self.shell.kill()
        self.shell.communicate()
        self.interrupt()


@pytest.fixture
def folder(roomy: Path) -> Iterator[Path]:
    yield roomy
    from leasehold.storage.immutable import set_tree

    set_tree(roomy, False)


def wait(true: object, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.timeout(240)
def test_a_tenant_follows_the_tutorial(folder: Path):
    reader = Reader("tenant.md", folder, own="/var/tmp/practice")
    said = []
    try:
        for title, code in reader.blocks:
            if title:
                log = reader.start(code)
                wait(lambda log=log: "Ctrl-C ends the demo" in log.read_text(), "demo")
                found = re.search(r"registry started.*(localhost:\d+)", log.read_text())
                assert found
                registry = found.group(1)
            else:
                said.append(reader.type(code.replace("localhost:29555", _of(locals(), "registry"))))
    finally:
        reader.close()
    text = "".join(said)
    assert "welcome to the shop, start number 1" in text
    assert "sale today" not in text
    assert "first answer" in text or "healthy" in text
    assert not (folder / "own").exists(), "Ctrl-C removes all of it"


def _of(names: dict[str, object], name: str) -> str:
    return str(names.get(name, "localhost:29555"))


@pytest.mark.timeout(240)
def test_an_operator_follows_the_tutorial(folder: Path):
    reader = Reader("operator.md", folder, own="/var/tmp/rent")
    state = folder / "own"
    said = []
    try:
        for title, code in reader.blocks:
            if code.strip() == "Ctrl-C":
                reader.interrupt()
            elif title:
                (state / "run.json").unlink(missing_ok=True)
                reader.start(code)
                wait(lambda: ready(state), "the provider is ready")
            else:
                said.append(reader.type(code))
    finally:
        reader.close()
    assert "running as root" in "".join(said)
    assert not state.exists(), "clear --purge leaves nothing"
    shutil.rmtree(folder / "own-home", ignore_errors=True)


def ready(state: Path) -> bool:
    """Also the packages of the node, which a reader gives the second they need."""
    if not (state / "run.json").exists():
        return False
    ops = json.loads((state / "run.json").read_text())["ops"]
    return httpx.get(f"{ops}/readyz", trust_env=False).is_success
