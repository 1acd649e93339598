"""What is installed is enough: the wheel, in an empty environment, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("leasehold-*.whl")
    return built


def test_the_wheel_has_everything_that_is_not_python(wheel: Path):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith(".py")}
    package = ROOT / "src"
    there = {
        str(file.relative_to(package))
        for file in (package / "leasehold").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".py"
    }
    assert there - packed == set()
    assert "leasehold/app/demo/hello.yaml" in packed


@pytest.mark.timeout(400)
def test_the_installed_wheel_runs_the_demo(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = ROOT / "requirements" / "run.txt"
    subprocess.run([*pip, "--require-hashes", "-r", requirements], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "leasehold", "demo", "--once", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=False,
    )
    result = json.loads(done.stdout)
    assert result["ok"], result
    assert result["left"] == []
