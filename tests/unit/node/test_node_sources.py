"""Package files: what is read, what is filled in, what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.node import blueprint, distro, sources
from leasehold.node.distro import InitCall, PackageDistro, ServiceDistro, SpellDistro
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.tree import Layers

PACKAGE = """
name = "p"
version = "1.0.0"
[config]
period = 60
greeting = "hi"
[[service]]
name = "svc"
run = ["{python}", "{app}/svc.py", "--hello={config.greeting}"]
files = ["svc.py", "lib"]
env = { PERIOD = "{config.period}" }
[[spell]]
name = "s"
script = "s.star"
kv = { settings = { every = "{config.period}", text = "every {config.period} s" } }
trigger = { clock = { start_sec = 1, period_sec = "{config.period}" } }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.toml").write_text(PACKAGE)
    (tmp_path / "svc.py").write_text("pass")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a")
    (tmp_path / "s.star").write_text("1")
    return tmp_path


def test_placeholders_keep_their_type(folder: Path) -> None:
    package = sources.read(folder / "p.toml", {"p": {"period": 90}})
    assert package.services[0].run[-1] == "--hello=hi"
    assert package.services[0].env == {"PERIOD": "90"}
    assert package.services[0].artifacts == {"svc.py": b"pass", "lib/a.py": b"a"}
    assert package.spells[0].kv == {"settings": {"every": 90, "text": "every 90 s"}}
    assert package.spells[0].trigger == TriggerConfig(ClockConfig(1, 0, 90))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"svc.py", "lib"', '"../secret"', "leads out of"),
        ('"svc.py", "lib"', '"missing"', "there is no"),
        ("{config.greeting}", "{config.greting}", "config.greting"),
        ("version =", "versio =", "versio"),
        ("period_sec", "period_secs", "period_secs"),
        ('name = "p"', "name = [", "Invalid"),
        ('"{config.period}" } }', '"{config.greeting}" } }', "Expected `int`"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "p.toml").write_text(PACKAGE.replace(old, new, 1))
    found = sources.directory(folder)
    [reason] = found.broken.values()
    assert message in reason
    assert not found.packages


@pytest.mark.parametrize("name", ["svc.py", "lib/out", "s.star"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/passwd")
    assert "leads out of" in sources.directory(folder).broken["p"]


def test_layers_are_read_as_one(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for name in ("kept", "changed", "gone/a", "dir/old", "linked", "lib/below"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text("lower")
    for name in ("changed", "dir/new", "lib"):
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text("upper")
    os.mknod(upper / "gone", stat.S_IFCHR)
    os.setxattr(upper / "dir", "user.overlay.opaque", b"y")
    (upper / "linked").symlink_to("/etc/passwd")
    tree = Layers([lower, upper])
    assert {k: p.read_text() for k, p in tree.files.items()} == {
        "kept": "lower", "changed": "upper", "dir/new": "upper", "lib": "upper",
    }  # fmt: skip
    assert list(tree.find("./dir")) == ["dir/new"]
    for name, message in (("gone/a", "there is no"), ("../kept", "leads out"), ("/etc", "leads")):
        with pytest.raises(LeaseholdError, match=message):
            tree.find(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"p": {"perod": 1}}, "did you mean 'period'"),
        ({"p": {"period": "soon"}}, "wrong type"),
        ({"p": {"period": True}}, "wrong type"),
        ({"pp": {}}, "not there; did you mean 'p'"),
    ],
)
def test_bad_configuration_is_refused(
    folder: Path, config: dict[str, dict[str, object]], message: str
) -> None:
    found = sources.directory(folder, config)
    found.check_configs(config)
    assert message in "".join(found.broken.values())


def test_what_cannot_be_read_is_kept(folder: Path) -> None:
    installed = {
        "other": f"{folder}/p.toml",  # The name in the file, which is not the file's.
        "gone": f"{folder}/gone.toml",
        "boxed": "r/boxed@sha256:1",
        "bundled": "",
    }
    (folder / "p.toml").write_text("name =")
    found = sources.directory(folder)
    found.merge(sources.Found(unread=["r/boxed"]))
    found.keep(installed)
    assert set(found.broken) == {"p", "other", "boxed"}
    found = sources.directory(folder / "unmounted")
    assert "there is no directory" in found.broken["node.packages_dir"]
    found.keep({"p": f"{folder}/unmounted/p.toml"})
    assert "p" in found.broken


def test_the_signature_changes_with_every_file(folder: Path) -> None:
    before = sources.signature(folder)
    assert sources.signature(folder) == before
    (folder / "lib" / "a.py").write_text("bb")
    assert sources.signature(folder) != before


def test_everything_wrong_is_found_at_once() -> None:
    packages = {
        "a": PackageDistro(
            name="a",
            services=(
                ServiceDistro(name="self", run=("x",)),
                ServiceDistro(name="img", image="x:latest"),
                ServiceDistro(name="both"),
                ServiceDistro(name="gone", run=("{app}/x",)),
            ),
            spells=(
                SpellDistro(
                    name="s", script="", trigger=TriggerConfig(ClockConfig(10, 5, 2**32 - 1))
                ),
            ),
            init=(InitCall("other.f"),),
        ),
        "b": PackageDistro(name="b", services=(ServiceDistro(name="both", run=("x",)),)),
    }
    wrong = distro.check(packages, 100.0)
    assert {v.code for v in wrong["a"]} == {
        "bad_name", "image_without_digest", "bad_service", "artifact_missing", "alias_clash",
        "period_too_big", "end_before_start", "bad_init",
    }  # fmt: skip
    assert {v.code for v in wrong["b"]} == {"alias_clash"}
    with pytest.raises(LeaseholdError, match="more"):
        distro.require(packages, 100.0)


versions = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)


@given(versions, versions)
def test_versions_are_ordered_like_their_numbers(a: str, b: str) -> None:
    def key(v: str) -> list[int]:
        parts = [int(p) for p in v.split(".")]
        return parts + [0] * (4 - len(parts))

    assert distro.older(a, b) == (key(a) < key(b))
    assert distro.older(f"{a}-rc1", a)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_blueprint_does_not_depend_on_order(config: dict[str, object]) -> None:
    service = ServiceDistro(name="s", run=("x",))
    one = PackageDistro(name="p", config=config)
    two = PackageDistro(name="p", config=dict(reversed(config.items())))
    assert blueprint.service_blueprint(one, service) == blueprint.service_blueprint(two, service)
    other = PackageDistro(name="p", config={**config, "new key": 1})
    assert blueprint.service_blueprint(one, service) != blueprint.service_blueprint(other, service)
    assert blueprint.fingerprint(one) != blueprint.fingerprint(other) or not other.services
