"""Settings: order of sources, provenance, every mistake at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.settings import load


class Web(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: Annotated[int, msgspec.Meta(description="port", ge=1, le=65535)] = 8080
    token: Annotated[str, msgspec.Meta(description="t", extra={"secret": True})] = ""
    hosts: Annotated[list[str], msgspec.Meta(description="names")] = []


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    web: Web = Web()
    name: str = "x"


def test_later_sources_win_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "l.toml"
    file.write_text('name = "file"\n[web]\nport = 1\nhosts = ["a"]\ntoken = "sesame"\n')
    environ = {"LEASEHOLD_WEB__PORT": "2", "LEASEHOLD_WEB__HOSTS": "b, c", "OTHER": "1"}
    loaded = load(Root, file=file, environ=environ, flags={"name": "flag", "web.port": None})
    assert loaded.values == Root(web=Web(port=2, hosts=["b", "c"], token="sesame"), name="flag")
    rows = {path: (value, source) for path, value, source in loaded.rows()}
    assert rows["web.port"] == (2, "LEASEHOLD_WEB__PORT")
    assert rows["web.token"] == ("***", str(file))
    assert rows["name"] == ("flag", "flag --name")


def test_all_mistakes_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "l.toml"
    file.write_text("[web]\nprot = 1\n[[nonsense]]\na = 1\n")
    with pytest.raises(LeaseholdError) as refused:
        load(Root, file=file, environ={"LEASEHOLD_WEB__PORT": "99999"})
    found = {v.path: v for v in refused.value.violations}
    assert found["web.prot"].expected == "web.port"
    assert found["web.port"].got == "'99999'"
    assert "nonsense" in found


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "l.toml"
    file.write_text("a = = 1")
    with pytest.raises(LeaseholdError, match=r"l\.toml"):
        load(Root, file=file)
    with pytest.raises(LeaseholdError, match="cannot read"):
        load(Root, file=tmp_path / "absent")
