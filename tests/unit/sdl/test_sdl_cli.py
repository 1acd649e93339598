"""``leasehold sdl``: what it prints, how it exits, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / "data" / "sdl"
RUN = "import sys; from leasehold.cli import main; main(sys.argv[1:])"


def leasehold(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *argv],
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
        timeout=60,
    )


def test_convert_prints_groups_manifest_and_hash() -> None:
    folder = DATA / "valid/v2.1/shared-ip"
    done = leasehold("sdl", "convert", str(folder / "sdl.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["groups"] == json.loads((folder / "group-specs.json").read_text())
    assert out["manifest"] == json.loads((folder / "manifest.json").read_text())
    assert out["hash"] == "4d7c14fc64377c78220ed54eb0a1ddbeac5f79f19edac7dc1a3306acbfa1d999"
    people = leasehold("sdl", "convert", "-", stdin=(folder / "sdl.yaml").read_text())
    assert "4 × 0.01 CPU" in people.stdout and people.returncode == 0


def test_validate_lists_everything_and_exits_1() -> None:
    file = DATA / "invalid/count-zero.yaml"
    done = leasehold("sdl", "validate", str(file))
    assert done.returncode == 1
    assert f"{file}:32:14: deployment.web.akash.count: 0 is not within" in done.stdout
    said = json.loads(leasehold("sdl", "validate", str(file), "--json").stdout)
    assert said["valid"] is False and said["violations"][0]["line"] == 32
    assert leasehold("sdl", "validate", str(DATA / "valid/v2.0/simple/sdl.yaml")).returncode == 0


def test_what_is_refused_says_where() -> None:
    done = leasehold("sdl", "convert", str(DATA / "invalid/count-zero.yaml"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: line 32: deployment.web.akash.count: 0 is not within")
    done = leasehold("sdl", "init", "--image", "x", "--memory", "1GB")
    assert "line" not in done.stderr and "resources.memory.size: '1GB'" in done.stderr


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    done = leasehold("sdl", "convert", str(tmp_path / "none.yaml"))
    assert done.returncode == 4 and "cannot read" in done.stderr
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in leasehold("sdl", "convert", str(tmp_path / "latin")).stderr


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom leasehold.cli.frame import run\n"
        f"run(['sdl', 'convert', {str(DATA / 'valid/v2.0/simple/sdl.yaml')!r}])\n"
        "heavy = {'grpc', 'litestar', 'sqlalchemy', 'nicegui', 'httpx', 'cryptography'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
