"""Builds and processes on a stack root: a Debian in every form, and roots with something wanting."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sites import PERSON, Site, as_root, ordinary
from support.stacks import Debian, directory, image, layer, layer_of, make_debian, member, tool

pytest_plugins = ["support.site_fixtures"]

PYTHON = "import platform; print(platform.freedesktop_os_release()['PRETTY_NAME'])"


@pytest.fixture(scope="session")
def debian() -> Iterator[Debian]:
    yield from make_debian()


def hosts_own() -> list[str]:
    """Programs that are here and in no stack root of these tests."""
    return [name for name in ("git", "node", "gcc", "umoci") if shutil.which(name)]


# -- Debian


@pytest.mark.parametrize("form", ["image", "archive", "directory"])
def test_a_build_and_its_process_on_a_debian(site: Site, debian: Debian, form: str) -> None:
    root = {"image": f"oci:{debian.image}:stack", "archive": str(debian.archive), "directory": str(debian.directory)}[
        form
    ]
    unseen = hosts_own()
    assert unseen
    script = f"""
        grep PRETTY_NAME /etc/os-release
        /usr/bin/python3 -c "{PYTHON}"
        id -un
        cat /etc/second /usr/share/doc/kept 2>/dev/null || true
        test ! -e /etc/debian_version || echo first layer
        for name in {" ".join(unseen)}; do ! type "$name" 2>/dev/null || exit 3; done
        grep -q '^hosts' /etc/nsswitch.conf && ls -d /etc/ssl/certs >/dev/null
        ! touch /usr/mine /etc/mine 2>/dev/null
        touch /var/tmp/mine "$2/mine"
        echo "$STACK" > "$1/made"
        """
    pack = site.buildpack(f"set -e\n{script}", release="echo '--- {}'")
    app = site.app(Procfile=f'web: cat made; /usr/bin/python3 -c "{PYTHON}"; type {unseen[0]}\n')
    result = site.build(app, pack, "--stack-root", root, "--stack", "own-1").ok()
    lines = result.text.split("\n")
    assert lines[0] == f'PRETTY_NAME="{lines[1]}"' and "Debian" in lines[1] and lines[2] == "dyno"
    assert lines[3:-1] == (["first layer"] if form == "directory" else ["from the second layer", "kept"])
    assert result.record["stack"] == "own-1"
    stack = result.record["stack_root"]
    assert (
        stack == debian.id if form == "image" else stack.startswith("packages:" if form == "directory" else "sha256:")
    )
    ran = site.run(site.out, "--stack-root", root)
    assert ran.text.split("\n")[:2] == ["own-1", lines[1]] and ran.code == 1
    assert "was built on" not in ran.err


def test_a_slug_runs_on_the_image_it_was_built_on(site: Site, debian: Debian) -> None:
    """Without a word, once the image has been unpacked; any other root is said."""
    app = site.app(Procfile="web: test -e /etc/second && echo on the stack || echo elsewhere\n")
    site.build(app, site.buildpack(), "--stack-root", str(debian.image)).ok()
    found = site.run(site.out).ok()
    assert (found.text, found.err) == ("on the stack\n", "")
    for other in ("/", str(debian.directory)):
        found = site.run(site.out, "--stack-root", other).ok()
        assert found.text == "elsewhere\n"
        assert debian.id in found.last and "was built on" in found.last
    shutil.rmtree(site.home / ".cache/nsbuild/stacks")
    found = site.run(site.out).ok()
    assert found.text == "elsewhere\n"
    assert debian.id in found.last and "the host's" in found.last and "--stack-root" in found.last


def test_the_cache_is_kept_for_the_stacks_name(site: Site, little: Path) -> None:
    """A patched root of the same name is what platforms have every week; buildpacks go by STACK."""
    pack = site.buildpack('echo "$STACK" >> "$2/seen"; cat "$2/seen"')
    first = site.build(site.app(), pack, "--stack-root", str(little)).ok()
    (little / "etc/os-release").write_text('PRETTY_NAME="Little 2"\n')
    second = site.build(site.app(), pack, "--stack-root", str(little)).ok()
    assert second.record["cache_hit"] and second.text == "heroku-24\nheroku-24\n"
    assert first.record["stack_root"] != second.record["stack_root"]
    assert not site.build(site.app(), pack, "--stack-root", str(little), "--stack", "x").ok().record["cache_hit"]


def test_a_root_that_belongs_to_a_stacks_name(site: Site, little: Path) -> None:
    """In the user's file; an app, which is anybody's, names none."""
    site.write("home/.config/nsbuild/nsbuild.toml", "[stacks]\nlittle-1 = '../../../little'\n")
    pack = site.buildpack("cat /etc/os-release")
    assert "Little 1" in site.build(site.app(), pack, "--stack", "little-1").ok().text
    assert "Little 1" not in site.build(site.app(), pack, "--stack", "little-1", "--stack-root", "/").ok().text
    assert "Little 1" not in site.build(site.app(), pack).ok().text
    site.write("app/nsbuild.toml", "[stacks]\nheroku-24 = './x'\n")
    site.build(site.path / "app", pack).refused(2, "stacks", "nothing that an app may set")


# -- what a root has and lacks


def look(site: Site, root: Path | str, script: str, *args: str) -> str:
    return site.build(site.app(), site.buildpack(f"set -e\n{script}"), "--stack-root", str(root), *args).ok().text


def test_a_root_with_next_to_nothing(site: Site, little: Path) -> None:
    """No /var, no /opt, no accounts, no resolver: what a process needs is made; nothing of the host comes along."""
    text = look(site, little, "ls / /etc /usr; id -un; echo ~dyno; touch /var/tmp/x", "--network", "none")
    assert text.split() == [
        *("/:", "app", "bin", "dev", "etc", "home"),
        *sorted(path.name for path in little.glob("lib*")),
        *("proc", "root", "run", "sys", "tmp", "usr", "var", "/etc:", "group", "hosts", "nsswitch.conf"),
        *("os-release", "passwd", "/usr:", "dyno", "/app"),
    ]


@pytest.mark.parametrize("kind", ["absent", "empty", "link to run", "absolute link", "link in circles", "directory"])
def test_the_hosts_resolver_and_names(site: Site, little: Path, kind: str) -> None:
    for name in ("resolv.conf", "hosts"):
        path = little / "etc" / name
        if kind == "empty":
            path.write_text("")
        elif kind == "link to run":
            path.symlink_to(f"../run/systemd/resolve/{name}")
        elif kind == "absolute link":
            (little / "usr/lib").mkdir(exist_ok=True)
            (little / f"usr/lib/{name}").write_text("the stack's\n")
            path.symlink_to(f"/usr/lib/{name}")
        elif kind == "link in circles":
            path.symlink_to(name)
        elif kind == "directory":
            path.mkdir()
    if kind == "directory":
        site.build(site.app(), site.buildpack(), "--stack-root", str(little)).refused(125, "/etc/")
        return
    text = look(site, little, "cat /etc/hosts /etc/resolv.conf || true")
    assert (Path("/etc/hosts").read_text() in text) is (kind != "link in circles")
    if Path("/etc/resolv.conf").is_file():
        assert (Path("/etc/resolv.conf").read_text() in text) is (kind != "link in circles")
    alone = look(site, little, "cat /etc/resolv.conf 2>/dev/null || true", "--network", "none")
    assert "nameserver" not in alone


def test_generated_files_take_the_place_of_links(site: Site, little: Path) -> None:
    for name in ("passwd", "group", "nsswitch.conf"):
        (little / "etc" / name).symlink_to("/usr/share/nothing")
    assert look(site, little, "id -un; test ! -L /etc/passwd") == "dyno\n"


def test_a_file_of_certificates_that_a_variable_names(site: Site, little: Path) -> None:
    """It is the operator's, and the host's, though a view of the host would show the place anyway."""
    (little / "etc/ssl").mkdir()
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    if not Path(certificates).is_file():
        certificates = "/etc/os-release"
    pack = site.buildpack('read -r line < "$SSL_CERT_FILE"; echo "$line"')
    result = site.build(site.app(), pack, "--stack-root", str(little), env={"SSL_CERT_FILE": certificates}).ok()
    assert result.text.strip() == Path(certificates).read_text().split("\n")[0]


def test_links_at_the_top_lead_into_the_root(site: Site, little: Path) -> None:
    (little / "bin").rename(little / "usr/bin")
    (little / "bin").symlink_to("/usr/bin")
    (little / "opt").symlink_to("/home")
    (little / "srv").symlink_to("../../../../../../root")
    text = look(site, little, "ls /bin/ /opt/ /srv/ 2>&1 || true; type ls")
    assert text.split("\n")[0] == "/bin/:"
    assert hosts_own()[0] not in text.split()
    assert not set(os.listdir("/home")) & set(text.split())


def test_what_is_closed_in_a_root_stays_closed(site: Site, little: Path) -> None:
    if PERSON != 0 and os.geteuid() == 0:
        (little / "etc/closed").write_text("secret")
        (little / "etc/closed").chmod(0o600)
        os.chown(little / "etc/closed", 0, 0)
    (little / "usr/closed").mkdir(mode=0)
    assert look(site, little, "cat /etc/closed 2>/dev/null || true; ls /usr/closed 2>/dev/null || true") == ""


def test_accounts_come_from_the_root(site: Site, little: Path) -> None:
    (little / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nstacked:x:77:77::/:/bin/false\n")
    assert look(site, little, "id -u stacked") == "77\n"


def test_a_root_of_a_stranger_reads_nothing_of_the_host(site: Site, little: Path) -> None:
    """Its passwd may be a link to the host's files, or a pipe that nobody writes to: these are read outside."""
    secret = site.write("home/secret", "stolen:x:7:7:gotcha:/:/bin/sh\n")
    (little / "etc/passwd").symlink_to(secret)
    os.mkfifo(little / "etc/group")
    text = look(site, little, "cat /etc/passwd /etc/group; ls -d /home/* /var/tmp/* 2>/dev/null || true")
    assert "gotcha" not in text and "dyno" in text


@ordinary
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rm bin/bash", ["/bin/bash"]),
        ("chmod 644 bin/bash", ["/bin/bash", "cannot be executed"]),
        ("mv bin away; ln -s /proc/self/root/bin bin", ["/bin/bash"]),
        ("rm -r bin usr etc", ["no root file system"]),
        ("mv etc away; ln -s /away etc", ["/etc", "link"]),
        ("chmod 000 .", ["cannot be read"]),
    ],
)
def test_a_root_on_which_nothing_can_be_built(site: Site, little: Path, change: str, words: list[str]) -> None:
    subprocess.run(["bash", "-c", change], cwd=little, check=True)
    site.build(site.app(), site.buildpack(), "--stack-root", str(little)).refused(2, str(little), *words)
    site.build(site.app(Procfile="web: x\n"), site.buildpack()).ok()
    site.run(site.out, "--stack-root", str(little)).refused(125, str(little), *words)
    little.chmod(0o755)


def test_a_bash_without_its_libraries_is_a_phase_that_cannot_run(site: Site, little: Path) -> None:
    for library in little.glob("lib*"):
        shutil.rmtree(library)
    site.build(site.app(), site.buildpack(), "--stack-root", str(little)).refused(125, "bin/detect")


def test_a_damaged_image_is_a_sentence(site: Site, little: Path) -> None:
    made = image(site.path / "image", layer_of(little))
    (made.path_of(made.id)).write_bytes(b"{}")
    site.build(site.app(), site.buildpack(), "--stack-root", str(made.path)).refused(2, str(made.path), "damaged")
    assert not site.out.exists()
    site.build(site.app(), site.buildpack(), "--stack-root", str(site.path / "never")).refused(
        2, "never", "No such file"
    )


def test_a_hostile_image_writes_nothing_outside(site: Site, little: Path) -> None:
    precious = site.write("home/precious", "precious")
    hostile = layer(
        directory("opt"),
        member("opt/out", type=b"2", linkname=str(site.home)),
        member("opt/out/precious", b"hostile"),
        member("opt/up", type=b"2", linkname="../" * 20 + str(site.home)[1:]),
        member("opt/up/precious", b"hostile"),
    )
    made = image(site.path / "image", layer_of(little), hostile)
    site.build(site.app(), site.buildpack(), "--stack-root", str(made.path)).refused(
        2, str(made.path), "opt/out/precious"
    )
    assert precious.read_text() == "precious"
    assert os.listdir(site.home / ".cache/nsbuild/stacks") == [] or not list(
        (site.home / ".cache/nsbuild/stacks").glob("*/root")
    )


@as_root
def test_root_builds_on_an_image_that_only_root_can_read(site: Site, little: Path) -> None:
    made = image(site.path / "image", layer_of(little))
    made.path.chmod(0o700)
    os.chown(made.path, 0, 0)
    result = site.build(site.app(), site.buildpack("id -u; ls /"), "--stack-root", str(made.path), root=True).ok()
    assert result.text.split()[0] == str(PERSON)


def test_loopback_names_without_a_network(site: Site, little: Path) -> None:
    assert socket.gethostbyname("localhost")
    assert "localhost" in look(site, little, "cat /etc/hosts", "--network", "none")


# -- an image of the slug


@pytest.mark.parametrize("form", ["image", "directory"])
def test_an_image_of_the_slug_boots_by_itself(site: Site, little: Path, form: str) -> None:
    """skopeo and umoci accept it; chroot runs it."""
    root = str(little)
    if form == "image":
        image(site.path / "stack", layer_of(little))
        root = str(site.path / "stack")
    closed = site.write("little/etc/shadow", "x", 0o000)
    os.link(closed, little / "etc/shadow-")
    app = site.app(Procfile='web: echo "$BOOTED $(cat /etc/os-release)"\n')
    site.write("app/.profile.d/x.sh", "export BOOTED=yes\n")
    result = site.build(app, site.buildpack(), "--stack-root", root, output="oci:made").ok()
    assert closed.stat().st_mode & 0o777 == 0
    assert ("lacks 2 paths" in result.err, "etc/shadow" in result.err) == ((form == "directory" and PERSON != 0),) * 2
    config = json.loads(tool(site, "skopeo", "inspect", "--config", "oci:made").stdout)
    assert len(config["rootfs"]["diff_ids"]) == 2
    manifest = json.loads(tool(site, "skopeo", "inspect", "--raw", "oci:made").stdout)
    sizes = [each["size"] for each in manifest["layers"]]
    assert sizes[1] < result.record["slug"]["bytes"] < sizes[0]
    tool(site, "umoci", "unpack", "--rootless", "--image", "made:latest", "bundle")
    environment = dict(line.split("=", 1) for line in config["config"]["Env"])
    command = [*config["config"]["Entrypoint"], *config["config"]["Cmd"]]
    words = [f"{name}={value}" for name, value in environment.items()]
    enter = ["unshare", "--user", "--map-root-user", "chroot", "bundle/rootfs", "/bin/env", "-i", *words]
    enter += ["/bin/bash", "-c", 'cd "$0" && exec "$@"', config["config"]["WorkingDir"], *command]
    assert tool(site, *enter).stdout == 'yes PRETTY_NAME="Little 1"\n'
    ran = site.run("made", "--stack-root", root).ok()
    assert ran.text == 'yes PRETTY_NAME="Little 1"\n'
    again = site.build(app, site.buildpack(), "--stack-root", root, output="oci:again").ok()
    assert again.record["slug"]["digest"] == result.record["slug"]["digest"]


def test_on_the_hosts_directories_an_image_has_the_app_alone(site: Site) -> None:
    site.build(site.app(), site.buildpack(), "--stack-root", "/", output="oci:made").ok()
    config = json.loads(tool(site, "skopeo", "inspect", "--config", "oci:made").stdout)
    assert len(config["rootfs"]["diff_ids"]) == 1
