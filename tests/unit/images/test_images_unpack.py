"""Layers become directories: as a merged tree would have it, and never outside their own."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.images import build
from leasehold.images.settings import ImagesSettings
from leasehold.images.unpack import Layers
from leasehold.model.digest import Digest

NOBODY = 65534


class Tar:
    """A tar written member by member, as hostile as asked."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.out, mode="w", format=tarfile.PAX_FORMAT)

    def add(
        self, name: str, data: bytes = b"", type: bytes = tarfile.REGTYPE, **fields: Any
    ) -> Tar:
        info = tarfile.TarInfo(name)
        info.type, info.size = type, len(data)
        for key, value in fields.items():
            setattr(info, key, value)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def dir(self, name: str, **fields: Any) -> Tar:
        return self.add(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})

    def link(self, name: str, target: str) -> Tar:
        return self.add(name, type=tarfile.SYMTYPE, linkname=target)

    def hard(self, name: str, target: str) -> Tar:
        return self.add(name, type=tarfile.LNKTYPE, linkname=target)

    def bytes(self) -> bytes:
        self.tar.close()
        return self.out.getvalue()


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder whose every parent lets anybody through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path / "layers", ImagesSettings(unpacked_bytes=50_000_000))
    made.prepare()
    return made


async def unpack(layers: Layers, tar: bytes | Tar, *below: Path, compression: str = "gzip") -> Path:
    raw = tar.bytes() if isinstance(tar, Tar) else tar
    layer = build.layer_of(raw, compression)
    blob = layers.root.parent / "blob"
    blob.write_bytes(layer.blob)
    return await layers.unpack(blob, layer.digest, layer.diff_id, below)


async def refusal(layers: Layers, tar: bytes | Tar, *below: Path) -> LeaseholdError:
    with pytest.raises(LeaseholdError) as caught:
        await unpack(layers, tar, *below)
    assert list(layers.root.iterdir()) == [], "nothing half-made stays"
    return caught.value


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
async def test_contents_modes_owners_and_links(layers: Layers, compression: str) -> None:
    tar = (
        Tar()
        .dir("./")
        .dir("bin", mode=0o1777)
        .add("bin/su", b"s" * 3_000_000, mode=0o4755, uid=3, gid=4)
        .hard("bin/sudo", "bin/su")
        .link("sbin", "bin")
        .add("/absolute/" + "n" * 120 + "/ünïcode", b"u")
        .add("fifo", type=tarfile.FIFOTYPE)
        .add("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    )
    tree = await unpack(layers, tar, compression=compression)
    su = (tree / "bin/su").lstat()
    assert stat.S_IMODE(su.st_mode) == 0o4755 and (su.st_uid, su.st_gid) == (3, 4)
    assert su.st_nlink == 2 and su.st_size == 3_000_000
    assert stat.S_IMODE((tree / "bin").stat().st_mode) == 0o1777
    assert os.readlink(tree / "sbin") == "bin"
    assert (tree / "absolute" / ("n" * 120) / "ünïcode").read_bytes() == b"u"
    assert stat.S_ISFIFO((tree / "fifo").lstat().st_mode)
    assert not (tree / "device").exists(), "device nodes are dropped"


async def test_whiteouts_become_what_overlayfs_reads(layers: Layers) -> None:
    tar = Tar().add(".wh.gone").dir("etc").add("etc/.wh..wh..opq").add("etc/new", b"1")
    tar.add(".wh.again").dir("again").add("again/x", b"2").add(".wh..wh.plnk")
    tree = await unpack(layers, tar)
    gone = (tree / "gone").lstat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    assert os.getxattr(tree / "etc", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(tree / "again", "trusted.overlay.opaque") == b"y", "deleted, made anew"
    assert (tree / "again/x").read_bytes() == b"2"
    assert sorted(p.name for p in tree.iterdir()) == ["again", "etc", "gone"]


async def test_a_parent_the_layer_does_not_list_keeps_its_owner_and_mode(layers: Layers) -> None:
    lower = await unpack(layers, Tar().dir("home", mode=0o711).dir("home/u", mode=0o700, uid=7))
    upper = Tar().add("home/u/file", b"x")
    tree = await unpack(layers, upper, lower)
    made = (tree / "home/u").stat()
    assert stat.S_IMODE(made.st_mode) == 0o700 and made.st_uid == 7
    assert stat.S_IMODE((tree / "home").stat().st_mode) == 0o711
    # The same layer on another base borrows something else: another directory, not a wrong one.
    other = await unpack(layers, Tar().dir("home").dir("home/u", mode=0o755, uid=9))
    raw = upper.out.getvalue()
    again = await unpack(layers, raw, other)
    assert again != tree and (again / "home/u").stat().st_uid == 9
    assert await layers.find(Digest.of(raw), [lower]) == tree


async def test_links_in_a_name_are_followed_as_the_container_sees_them(layers: Layers) -> None:
    lower = await unpack(layers, Tar().dir("run").dir("var").link("var/run", "/run"))
    tree = await unpack(layers, Tar().add("var/run/lock", b"l"), lower)
    assert (tree / "run/lock").read_bytes() == b"l"
    assert not (tree / "var/run").is_symlink() and not (tree / "var/run").exists()
    same = await unpack(layers, Tar().dir("run").link("r", "run").add("r/x", b"1").hard("h", "r/x"))
    assert (same / "run/x").stat().st_nlink == 2
    up = await unpack(layers, Tar().link("up", "../../../..").add("up/etc/x", b"in"))
    assert (up / "etc/x").read_bytes() == b"in", "above the root is the root"


HOSTILE: dict[str, Callable[[], bytes | Tar]] = {
    "dots": lambda: Tar().add("../escape", b"x"),
    "dots inside": lambda: Tar().add("a/../../escape", b"x"),
    "hard link out": lambda: Tar().hard("passwd", "/etc/passwd"),
    "hard link by dots": lambda: Tar().hard("passwd", "../../../../etc/passwd"),
    "hard link through a link": lambda: Tar().link("l", "/etc").hard("passwd", "l/passwd"),
    "link circle": lambda: Tar().link("a", "b").link("b", "a").add("a/x", b"x"),
    "whiteout of nothing": lambda: Tar().add("a/.wh."),
    "whiteout of itself": lambda: Tar().add("a/.wh.."),
    "whiteout of the parent": lambda: Tar().add("a/.wh..."),
    "directory replaced": lambda: Tar().dir("a").add("a/x", b"").link("a", "/etc"),
    "root replaced": lambda: Tar().link("/", "/etc"),
    "long name": lambda: Tar().add("x" * 300, b""),
    "long path": lambda: Tar().add("/".join(["y" * 200] * 30), b""),
    "no such owner": lambda: Tar().add("x", b"", uid=1 << 55),
    "cut in a file": lambda: Tar().add("x", b"1" * 5000).bytes()[:2000],
    "cut in a header": lambda: Tar().add("x").bytes()[:100],
    "no tar": lambda: b"\x01" * 5000,
    "bomb": lambda: Tar().add("zeros", bytes(60_000_000)),
    "long tail": lambda: Tar().add("x").bytes() + bytes(60_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_layer_is_refused_and_leaves_nothing(layers: Layers, name: str) -> None:
    before = os.stat("/etc/passwd")
    error = await refusal(layers, HOSTILE[name]())
    assert error.code in ("layer_refused", "layer_too_large"), error
    after = os.stat("/etc/passwd")
    assert (before.st_nlink, before.st_mtime) == (after.st_nlink, after.st_mtime)
    assert not (layers.root.parent / "escape").exists()


async def test_writing_through_a_link_stays_inside(layers: Layers, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = await unpack(layers, Tar().link("out", str(outside)).add("out/file", b"x"))
    assert list(outside.iterdir()) == []
    assert (tree / str(outside).lstrip("/") / "file").read_bytes() == b"x"


async def test_attributes_that_steer_overlayfs_are_dropped(layers: Layers) -> None:
    tar = Tar().dir(
        "d",
        pax_headers={
            "SCHILY.xattr.trusted.overlay.redirect": "/etc",
            "SCHILY.xattr.user.note": "kept",
        },
    )
    tree = await unpack(layers, tar)
    assert os.listxattr(tree / "d") == ["user.note"]


async def test_a_wrong_diff_id_and_a_damaged_blob_are_refused(layers: Layers) -> None:
    raw = Tar().add("x", b"1").bytes()
    blob = layers.root.parent / "blob"
    good = gzip.compress(raw)
    blob.write_bytes(good)
    for digest, diff_id in (
        (Digest.of(good), Digest.of(b"other")),
        (Digest.of(b"other"), Digest.of(raw)),
    ):
        with pytest.raises(LeaseholdError) as caught:
            await layers.unpack(blob, digest, diff_id, [])
        assert caught.value.code == "digest_mismatch"
    blob.write_bytes(good[:-20])
    with pytest.raises(LeaseholdError) as caught:
        await layers.unpack(blob, Digest.of(good), Digest.of(raw), [])
    assert caught.value.code in ("layer_refused", "digest_mismatch")
    assert list(layers.root.iterdir()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_bit_flip_makes_it_hang_or_leave_the_layer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Damaged archives end in a refusal or in a tree, never in another exception."""
    tar = Tar().dir("a").add("a/x", b"1" * 700).link("l", "a").hard("h", "a/x").add("a/.wh.q")
    raw = bytearray(tar.bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 5 * 512 + 1024))
        raw[at % len(raw)] ^= 1 << data.draw(st.integers(0, 7))
    layers = Layers(tmp_path_factory.mktemp("flip") / "layers", ImagesSettings())
    layers.prepare()
    codes = []
    try:
        await unpack(layers, bytes(raw), compression="")
    except LeaseholdError as error:
        codes.append(error.code)
    assert set(codes) <= {"layer_refused", "layer_too_large"}


async def test_what_a_power_cut_may_have_hurt_is_unpacked_again(layers: Layers) -> None:
    tree = await unpack(layers, Tar().add("x", b"1"))
    later = Layers(layers.root)
    later.prepare()
    assert tree.exists(), "the same boot: the page cache has it"
    later._boot = "another boot"
    later.prepare()
    assert not tree.exists()
    tree = await unpack(layers, Tar().add("x", b"1"))
    await layers.settle()
    later.prepare()
    assert tree.exists(), "synced: it survives"


def test_somebody_without_root_unpacks_as_themselves(roomy: Path):
    """`deploy.runtime = "process"` is for those; bsdtar may not chroot for them."""
    os.chown(roomy, NOBODY, NOBODY)
    tar = Tar().dir("bin").add("bin/sh", b"#!", mode=0o755, uid=0).add(".wh.gone").bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            made = Layers(roomy / "layers", ImagesSettings())
            made.prepare()
            tree = asyncio.run(unpack(made, tar))
            info = (tree / "bin" / "sh").stat()
            code = 0 if (info.st_uid, stat.S_IMODE(info.st_mode)) == (NOBODY, 0o755) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
