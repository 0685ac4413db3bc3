"""Views are values: composed from listings, compared and printed. No kernel, no files."""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from typing import Any

import pytest

from nsbuild.sandbox.host import Entry, Host
from nsbuild.sandbox.skeleton import contents
from nsbuild.sandbox.value import Value, pack, unpack
from nsbuild.sandbox.view import (
    Bind,
    Dev,
    Directory,
    File,
    Layout,
    Operation,
    Overlay,
    Place,
    Proc,
    Symlink,
    Tmpfs,
    User,
    View,
    ViewError,
    app_layout,
    classic_layout,
    compose,
)

USER = User(1000, 1000)


def directories(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, "directory") for name in names)


def files(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, "file") for name in names)


MERGED = Host(
    root="/",
    listings={
        "/": (
            Entry("bin", "symlink", "usr/bin"),
            Entry("lib64", "symlink", "usr/lib64"),
            *directories("boot", "etc", "home", "mnt", "opt", "proc", "run", "secrets", "tmp", "usr", "var"),
            *files("swapfile"),
        ),
        "/etc": (*directories("ssl"), *files("group", "nsswitch.conf", "passwd")),
        "/var": directories("lib", "tmp"),
    },
    passwd="root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\nann:x:1001:1001::/home/ann:\n",
    group="root:x:0:\nsudo:x:27:ann,bob\nann:x:1001:\n",
)


def view(host: Host = MERGED, run_path: str = "/app", **options: Any) -> View:
    places = {run_path: "/w/app", "/tmp": "/w/tmp", "/tmp/cache": "/w/cache"}
    arguments = {"user": USER, "places": places, **options}
    return compose(host, workspace="/w", home=run_path, var_tmp="/w/var-tmp", **arguments)


def at(value: View, path: str) -> list[Operation]:
    return [operation for operation in value.operations if operation.path == path]


def host_with(listings: Mapping[str, tuple[Entry, ...]], **changes: Any) -> Host:
    return MERGED.replace(listings={**MERGED.listings, **listings}, **changes)


def test_the_view_of_a_merged_usr_host() -> None:
    passwd, group, nsswitch = (at(view(), f"/etc/{name}")[0] for name in ("passwd", "group", "nsswitch.conf"))
    assert view().operations == (
        Symlink("/bin", "usr/bin"),
        Symlink("/lib64", "usr/lib64"),
        Bind("/etc", "/etc"),
        Bind("/opt", "/opt"),
        Bind("/usr", "/usr"),
        Bind("/var", "/var"),
        Directory("/home"),
        Directory("/root", 0o700),
        Directory("/run"),
        Bind("/sys", "/sys"),
        Place("/app", "/w/app"),
        Place("/tmp", "/w/tmp"),
        Place("/tmp/cache", "/w/cache"),
        Proc("/proc"),
        Dev("/dev"),
        passwd,
        group,
        nsswitch,
        Bind("/var/tmp", "/w/var-tmp", writable=True),
    )


def test_a_host_without_merged_usr() -> None:
    host = host_with({"/": directories("bin", "etc", "lib", "lib32", "usr", "var")})
    value = view(host)
    for name in ("bin", "lib", "lib32"):
        assert at(value, f"/{name}") == [Bind(f"/{name}", f"/{name}")]


def test_nothing_is_shown_that_is_not_named() -> None:
    shown = {operation.path for operation in view().operations}
    assert not shown & {"/boot", "/mnt", "/secrets", "/swapfile"}
    assert not any("/home/" in path for path in shown)


def test_a_stack_root() -> None:
    value = view(MERGED.replace(root="/stacks/24"))
    assert at(value, "/usr") == [Bind("/usr", "/stacks/24/usr")]
    assert at(value, "/bin") == [Symlink("/bin", "usr/bin")]
    assert at(value, "/sys") == [Bind("/sys", "/sys")]


def test_accounts() -> None:
    value = view(MERGED, "/app")
    (passwd,) = at(value, "/etc/passwd")
    (group,) = at(value, "/etc/group")
    assert isinstance(passwd, File)
    assert isinstance(group, File)
    assert passwd.content.decode() == (
        "dyno:x:1000:1000:dyno:/app:/bin/bash\n"
        "root:x:0:0:root:/root:/bin/bash\n"
        "_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n"
    )
    assert group.content.decode() == "dyno:x:1000:\nroot:x:0:\nsudo:x:27:\n"
    assert passwd.mode == group.mode == 0o444


def test_accounts_where_the_build_has_a_system_accounts_number_or_name() -> None:
    host = MERGED.replace(
        passwd="root:x:0:0::/root:/bin/sh\nbuilder:x:998:998::/b:/bin/sh\ndyno:x:7:7::/d:\nodd\nx:x:y:1:::\n"
    )
    (passwd,) = at(view(host, user=User(998, 998)), "/etc/passwd")
    assert isinstance(passwd, File)
    assert passwd.content.decode() == "dyno:x:998:998:dyno:/app:/bin/bash\nroot:x:0:0::/root:/bin/sh\n"


def test_accounts_of_a_host_that_has_none() -> None:
    (passwd,) = at(view(MERGED.replace(passwd="", group="")), "/etc/passwd")
    assert isinstance(passwd, File)
    assert passwd.content == b"dyno:x:1000:1000:dyno:/app:/bin/bash\nroot:x:0:0:root:/root:/bin/sh\n"


def test_accounts_in_other_bytes() -> None:
    (passwd,) = at(view(MERGED.replace(passwd="svc:x:9:9:\udcff:/:\n")), "/etc/passwd")
    assert isinstance(passwd, File)
    assert passwd.content.endswith(b"\nsvc:x:9:9:\xff:/:\n")


def test_nsswitch_asks_the_files_first() -> None:
    (nsswitch,) = at(view(), "/etc/nsswitch.conf")
    assert isinstance(nsswitch, File)
    rows = dict(line.split(":") for line in nsswitch.content.decode().splitlines() if ":" in line and line[0] != "#")
    assert rows["passwd"].split() == ["files"]
    assert rows["group"].split() == ["files"]
    assert rows["hosts"].split() == ["files", "dns"]


def test_a_missing_file_splits_its_directory() -> None:
    """Nothing can be made in a read-only bind, so /etc becomes a directory of ours with the host's entries."""
    value = view(
        host_with({"/etc": (*directories("ssl"), Entry("mtab", "symlink", "../proc/mounts"), *files("passwd"))})
    )
    assert at(value, "/etc") == [Directory("/etc", 0o755)]
    assert at(value, "/etc/ssl") == [Bind("/etc/ssl", "/etc/ssl")]
    assert at(value, "/etc/mtab") == [Symlink("/etc/mtab", "../proc/mounts")]
    assert [type(operation) for operation in at(value, "/etc/passwd")] == [Bind, File]
    assert [type(operation) for operation in at(value, "/etc/nsswitch.conf")] == [File]


def test_a_run_path_below_a_host_directory_splits_the_way() -> None:
    host = host_with({"/opt": (*directories("tool"), *files("readme"), Entry("link", "symlink", "tool"))})
    value = view(host, "/opt/app")
    assert at(value, "/opt") == [Directory("/opt", 0o755)]
    assert at(value, "/opt/tool") == [Bind("/opt/tool", "/opt/tool")]
    assert at(value, "/opt/readme") == [Bind("/opt/readme", "/opt/readme", directory=False)]
    assert at(value, "/opt/link") == [Symlink("/opt/link", "tool")]
    assert at(value, "/opt/app") == [Place("/opt/app", "/w/app")]
    assert at(value, "/usr") == [Bind("/usr", "/usr")]


def test_a_run_path_that_exists_on_the_host_is_the_builds_own() -> None:
    value = view(host_with({"/opt": directories("app", "tool")}), "/opt/app")
    assert at(value, "/opt/app") == [Place("/opt/app", "/w/app")]


def test_a_deeper_run_path() -> None:
    host = host_with({"/usr": directories("bin", "src"), "/usr/src": directories("linux")})
    value = view(host, "/usr/src/app")
    assert at(value, "/usr") == [Directory("/usr", 0o755)]
    assert at(value, "/usr/bin") == [Bind("/usr/bin", "/usr/bin")]
    assert at(value, "/usr/src") == [Directory("/usr/src", 0o755)]
    assert at(value, "/usr/src/linux") == [Bind("/usr/src/linux", "/usr/src/linux")]


def test_a_run_path_on_the_way_to_which_nothing_exists() -> None:
    value = view(host_with({"/opt": ()}), "/opt/a/b")
    assert at(value, "/opt/a") == [Directory("/opt/a")]
    assert at(view(run_path="/home/vcap/app"), "/home/vcap") == [Directory("/home/vcap")]
    assert at(view(run_path="/a/b/c"), "/a/b") == [Directory("/a/b")]


def test_a_directory_closed_to_its_owner_is_open_to_the_build() -> None:
    """It must make mount points in it."""
    host = host_with({"/": (Entry("opt", "directory", "", 0o055), *directories("etc", "var")), "/opt": ()})
    assert at(view(host, "/opt/app"), "/opt") == [Directory("/opt", 0o755)]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Entry("opt", "symlink", "usr/opt"), "/opt is a symlink to usr/opt on this host"),
        (Entry("opt", "file"), "/opt is a file on this host"),
    ],
)
def test_a_run_path_that_cannot_be(entry: Entry, said: str) -> None:
    with pytest.raises(ViewError, match=said):
        view(host_with({"/": (entry, *directories("etc", "var"))}), "/opt/app")


def test_binds_and_overlays_come_last_and_find_their_mount_points() -> None:
    binds = [
        Bind("/opt/tool", "/h/tool"),
        Bind("/app/vendor", "/h/vendor"),
        Bind("/home/u/f", "/h/f", directory=False),
    ]
    overlays = [Overlay("/slug/app", "/h/slug", "/w/scratch")]
    value = view(host_with({"/opt": directories("other")}), binds=binds, overlays=overlays)
    assert value.operations[-4:] == (*binds, *overlays)
    assert at(value, "/opt") == [Directory("/opt", 0o755)], "there is no /opt/tool to mount on"
    assert at(value, "/slug") == [Directory("/slug")]
    assert at(value, "/home/u") == [Directory("/home/u")]
    assert not at(value, "/app/vendor")[1:]


def test_a_bind_over_what_is_there_splits_nothing() -> None:
    value = view(host_with({"/opt": directories("tool")}), binds=[Bind("/opt/tool", "/h/tool")])
    assert at(value, "/opt") == [Bind("/opt", "/opt")]


def test_the_resolvers_file_is_bound_with_the_hosts_network_only() -> None:
    host = MERGED.replace(resolver=("/run/systemd/resolve/stub-resolv.conf", "/run/systemd/resolve/stub-resolv.conf"))
    path, source = host.resolver or ("", "")
    assert at(view(host), path) == [Bind(path, source, directory=False)]
    assert at(view(host, network="none"), path) == []
    assert at(view(host), "/run") == [Directory("/run")]


def test_var_tmp_that_is_a_link_needs_no_mount() -> None:
    value = view(host_with({"/var": (*directories("lib"), Entry("tmp", "symlink", "/tmp"))}))
    assert at(value, "/var/tmp") == []


def test_var_tmp_that_is_missing_is_made() -> None:
    value = view(host_with({"/var": directories("lib")}))
    assert at(value, "/var") == [Directory("/var", 0o755)]
    assert at(value, "/var/lib") == [Bind("/var/lib", "/var/lib")]
    assert at(value, "/var/tmp") == [Bind("/var/tmp", "/w/var-tmp", writable=True)]


def test_root_on_disk_carries_over_to_var_tmp() -> None:
    value = view(user=User(1000, 1000, root_on_disk=True))
    assert at(value, "/var/tmp") == [Bind("/var/tmp", "/w/var-tmp", writable=True, root_on_disk=True)]


def test_the_contents_of_a_skeleton() -> None:
    host = host_with({"/opt": (*directories("tool"), *files("readme"))})
    found = contents(view(host, "/opt/app", binds=[Bind("/srv/x/y", "/h/y"), Bind("/opt/app/sub/z", "/h/z")]))
    assert found == [
        ("/bin", "symlink", "usr/bin"),
        ("/lib64", "symlink", "usr/lib64"),
        ("/etc", "directory", 0o755),
        ("/opt", "directory", 0o755),
        ("/opt/tool", "directory", 0o755),
        ("/opt/readme", "file", 0o644),
        ("/usr", "directory", 0o755),
        ("/var", "directory", 0o755),
        ("/home", "directory", 0o755),
        ("/root", "directory", 0o700),
        ("/run", "directory", 0o755),
        ("/sys", "directory", 0o755),
        ("/srv", "directory", 0o755),
        ("/srv/x", "directory", 0o755),
        ("/proc", "directory", 0o755),
        ("/dev", "directory", 0o755),
        ("/srv/x/y", "directory", 0o755),
    ]
    paths = [path for path, _, _ in found]
    assert len(paths) == len(set(paths))
    assert not any(path.startswith(("/opt/app", "/tmp", "/etc/", "/var/")) for path in paths)
    for path in paths:
        parent = path.rpartition("/")[0]
        assert not parent or parent in paths[: paths.index(path)], f"{path} comes before its parent"


def test_explain_prints_a_line_each_and_no_content() -> None:
    value = view(
        MERGED.replace(passwd="svc:secret:9:9::/:\n"),
        binds=[Bind("/srv/x", "/h/x"), Bind("/srv/w", "/h/w", writable=True)],
        overlays=[Overlay("/slug", "/h/slug", "/w/scratch")],
        user=User(1000, 1001, root_on_disk=True),
        network="none",
    )
    lines = value.explain().splitlines()
    assert len(lines) == len(value.operations) + 3
    for line in (
        "root       /w/root  (a skeleton, writable, verified or fresh for every launch)",
        "user       uid 1000 gid 1001, identity map, on disk root",
        "network    none",
        "symlink    /bin  -> usr/bin",
        "bind       /usr  (read-only) from /usr",
        "bind       /srv/w  (writable) from /h/w",
        "directory  /root  (mode 0700)",
        "place      /app  (writable) from /w/app",
        "overlay    /slug  (writes to /w/scratch) over /h/slug",
        "proc       /proc",
        "dev        /dev",
    ):
        assert line in lines
    assert any(line.startswith("file       /etc/passwd  (") and line.endswith(" bytes, generated)") for line in lines)
    assert "secret" not in value.explain()
    assert Tmpfs("/x", 0o700).describe() == "tmpfs      /x  (mode 0700)"


def test_layouts() -> None:
    assert app_layout() == Layout("app", "/app", "/tmp/cache", "/tmp/env", "/app")
    assert app_layout("/home/vcap/app") == Layout(
        "app:/home/vcap/app", "/home/vcap/app", "/tmp/cache", "/tmp/env", "/home/vcap/app"
    )
    classic = classic_layout("4f2a")
    assert (classic.build_dir, classic.cache_dir, classic.home) == ("/tmp/build_4f2a", "/tmp/codon/tmp/cache", "/app")


@pytest.mark.parametrize(
    "path",
    ["app", "", "/", "/app/", "/a//b", "/a/../b", "/a/.", "/a\0b", "/tmp/app", "/tmp", "/proc/x", "/dev", "/sys/x"],
)
def test_run_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(ViewError):
        app_layout(path)


def test_values_are_frozen_equal_by_content_and_travel() -> None:
    value = view(binds=[Bind("/srv/\udcff", "/h/\udcff")])
    assert value == view(binds=[Bind("/srv/\udcff", "/h/\udcff")])
    assert value != view()
    assert hash(value) == hash(view(binds=[Bind("/srv/\udcff", "/h/\udcff")]))
    assert Bind("/a", "/b") != Place("/a", "/b")
    assert unpack(marshal.loads(marshal.dumps(pack(value)))) == value
    with pytest.raises(AttributeError):
        value.network = "none"  # type: ignore[misc]
    assert value.replace(network="none").network == "none"
    assert value.network == "host"
    assert "Bind(path='/usr'" in repr(value)


def test_values_check_what_they_are_made_of() -> None:
    make: Any = Bind
    for arguments, keywords in (
        ((), {}),
        (("/a",), {}),
        (("/a", "/b", 1, 2, 3, 4), {}),
        (("/a", "/b"), {"path": "/c"}),
    ):
        with pytest.raises(TypeError):
            make(*arguments, **keywords)
    with pytest.raises(TypeError):
        make("/a", "/b", nonsense=1)


def test_pack_keeps_lists_tuples_and_mappings_apart() -> None:
    class Some(Value):
        things: object

    value = Some({"a": [1, (2, b"x", None)], b"k": Some(1.5)})
    assert unpack(marshal.loads(marshal.dumps(pack(value)))) == value
