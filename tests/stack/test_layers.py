"""Layers applied to a directory: what opencontainers/image-spec layer.md says, and what a hostile one may try."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stacks import directory, hard_link, layer, member, symlink

from nsbuild.stack.layers import Malformed, RootFileSystem

Member = tuple[tarfile.TarInfo, bytes]


class Tree:
    def __init__(self, path: Path) -> None:
        self.path = path / "root"
        self.path.mkdir()
        (path / "outside").mkdir()
        (path / "outside/precious").write_text("precious")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.system = RootFileSystem(self._fd)

    def apply(self, *members: Member) -> Tree:
        self.system.apply(io.BytesIO(layer(*members)))
        return self

    def refused(self, *members: Member) -> str:
        with pytest.raises(Malformed) as caught:
            self.apply(*members)
        return str(caught.value)

    def paths(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def text(self, name: str) -> str:
        return (self.path / name).read_text()

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert [path.name for path in (tmp_path / "outside").iterdir()] == ["precious"]
        assert (tmp_path / "outside/precious").read_text() == "precious"


def test_files_directories_and_links(tree: Tree) -> None:
    tree.apply(
        directory("./"),
        directory("./usr/", mode=0o755, mtime=5),
        member("./usr/tool", b"#!", mode=0o755, mtime=1_500_000_000.75, uid=7, gid=8),
        hard_link("./usr/other", "./usr/tool"),
        symlink("./bin", "usr"),
        member("/etc/absolute", b"x"),
    )
    tree.system.finish()
    assert tree.paths() == ["bin", "etc", "etc/absolute", "usr", "usr/other", "usr/tool"]
    info = (tree.path / "usr/tool").stat()
    assert (info.st_mode, info.st_mtime, info.st_nlink) == (stat.S_IFREG | 0o755, 1_500_000_000, 2)
    assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
    assert (tree.path / "usr").stat().st_mtime == 5  # fontconfig compares it with its cache
    assert os.readlink(tree.path / "bin") == "usr"


def test_modes_are_kept_as_far_as_they_make_sense_for_one_user(tree: Tree) -> None:
    tree.apply(
        directory("closed", mode=0),
        member("closed/in", b"x", mode=0o4755),
        directory("sticky", mode=0o3777),
        member("secret", mode=0o640),
    )
    tree.system.finish()
    modes = {name: stat.S_IMODE((tree.path / name).stat().st_mode) for name in tree.paths()}
    assert modes == {"closed": 0o700, "closed/in": 0o755, "sticky": 0o1777, "secret": 0o640}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_fifos_are_left_out_and_replace_what_was_there(tree: Tree, kind: bytes) -> None:
    tree.apply(member("lower", b"x"))
    tree.apply(member("node", type=kind, devmajor=1, devminor=3), member("lower", type=kind), member("after"))
    assert tree.paths() == ["after"]


def test_a_whiteout_removes_what_lower_layers_have(tree: Tree) -> None:
    tree.apply(directory("a"), member("a/one"), directory("a/two"), member("a/two/deep"), symlink("link", "a"))
    tree.apply(member("a/.wh.one"), member("a/.wh.two"), member(".wh.link"), member(".wh.never"))
    assert tree.paths() == ["a"]


@pytest.mark.parametrize("whiteout_first", [True, False])
def test_a_whiteout_leaves_what_its_own_layer_has(tree: Tree, whiteout_first: bool) -> None:
    tree.apply(directory("a"), member("a/old"), directory("a/deep"), member("a/deep/old"))
    own = [directory("a"), member("a/new", b"new"), directory("a/deep"), member("a/deep/new")]
    tree.apply(*([member(".wh.a"), *own] if whiteout_first else [*own, member(".wh.a")]))
    assert tree.paths() == ["a", "a/deep", "a/deep/new", "a/new"]


@pytest.mark.parametrize("opaque_first", [True, False])
def test_an_opaque_directory_hides_what_lower_layers_have_in_it(tree: Tree, opaque_first: bool) -> None:
    tree.apply(directory("a"), member("a/old"), directory("a/deep"), member("a/deep/old"), member("beside"))
    own = [directory("a"), member("a/new"), directory("a/deep"), member("a/deep/new")]
    opaque = member("a/.wh..wh..opq")
    tree.apply(*([opaque, *own] if opaque_first else [*own, opaque]))
    assert tree.paths() == ["a", "a/deep", "a/deep/new", "a/new", "beside"]


def test_what_aufs_keeps_for_itself_is_no_file(tree: Tree) -> None:
    tree.apply(directory(".wh..wh.plnk"), member(".wh..wh.aufs"), member("x"))
    assert tree.paths() == ["x"]


def test_one_kind_of_thing_replaces_another(tree: Tree) -> None:
    tree.apply(
        *(directory(f"{name}/below") for name in ("a", "b")), member("c", b"c"), symlink("d", "a"), symlink("e", "c")
    )
    tree.apply(member("a", b"file"), symlink("b", "a"), directory("c"), directory("d"), member("e", b"own"))
    assert tree.text("a") == "file" and os.readlink(tree.path / "b") == "a"
    assert (tree.path / "c").is_dir() and (tree.path / "d").is_dir() and not (tree.path / "d").is_symlink()
    assert tree.text("e") == "own" and not (tree.path / "e").is_symlink()


def test_a_file_that_is_replaced_leaves_its_other_name_alone(tree: Tree) -> None:
    tree.apply(member("one", b"old"), hard_link("two", "one"))
    tree.apply(member("one", b"new"))
    assert (tree.text("one"), tree.text("two")) == ("new", "old")


def test_members_go_through_the_images_own_links(tree: Tree) -> None:
    """`/var/run -> /run` and `/bin -> usr/bin` are in nearly every image; later layers have `bin/x`."""
    tree.apply(directory("run"), directory("usr/bin"), directory("var"), symlink("var/run", "/run"))
    tree.apply(symlink("bin", "usr/bin"), symlink("usr/up", "../../../../run"))
    tree.apply(member("var/run/x"), member("bin/y"), hard_link("bin/z", "/var/run/x"), member("usr/up/w"))
    assert {"run/x", "usr/bin/y", "usr/bin/z", "run/w"} <= set(tree.paths())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", ".."])
def test_a_member_that_leads_out_is_refused(tree: Tree, name: str) -> None:
    assert name in tree.refused(member(name))
    assert name in tree.refused(hard_link("link", name))
    assert tree.paths() == []


def test_no_link_leads_out(tree: Tree) -> None:
    outside = str(tree.path.parent / "outside")
    for number, target in enumerate((outside, "../outside", "a/../../outside", "/proc/self/cwd", "/proc/1/root")):
        name = f"link{number}"
        tree.apply(directory("a"), symlink(name, target))
        with pytest.raises(Malformed):
            tree.apply(member(f"{name}/precious", b"hostile"))
        with pytest.raises(Malformed):
            tree.apply(hard_link("stolen", f"{name}/precious"))
    tree.apply(symlink("file", f"{outside}/precious"))
    tree.apply(member("file", b"own"))
    assert tree.text("file") == "own"
    assert not any(path.endswith(("stolen", "precious")) for path in tree.paths())


def test_whiteouts_and_opaque_directories_reach_nothing_outside(tree: Tree) -> None:
    outside = str(tree.path.parent / "outside")
    tree.apply(symlink("link", outside), directory("real"))
    for name in ("link/.wh.precious", "link/.wh..wh..opq"):
        with pytest.raises(Malformed):
            tree.apply(member(name))
    for name in (".wh.", ".wh..", ".wh..."):
        assert "whiteout" in tree.refused(member(name))
    tree.apply(member(".wh.link"))
    assert tree.paths() == ["real"]


def test_a_hard_link_to_nothing_is_refused_and_one_to_itself_is_none(tree: Tree) -> None:
    assert "No such file" in tree.refused(hard_link("a", "nothing"))
    tree.apply(member("b", b"b"), hard_link("b", "./b"))
    assert tree.text("b") == "b"


def test_times_and_names_that_make_no_sense(tree: Tree) -> None:
    tree.apply(
        member("nan", pax_headers={"mtime": "nan"}),
        member("late", pax_headers={"mtime": "1e300"}),
        member("early", mtime=-5),
        member("\udcff", b"bytes"),
    )
    tree.system.finish()
    assert tree.paths() == ["early", "late", "nan", "\udcff"]
    assert "N" in tree.refused(member("N" * 300))
    assert "cannot be made" in tree.refused(symlink("empty", ""))


def test_a_layer_that_is_cut_off(tree: Tree) -> None:
    whole = layer(member("a", b"a" * 5000))
    for size in (100, 600, 3000):
        with pytest.raises(Malformed):
            tree.system.apply(io.BytesIO(whole[:size]))
    with pytest.raises(Malformed):
        tree.system.apply(io.BytesIO(b"not a tar " * 1000))
