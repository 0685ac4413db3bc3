"""Fetching: once, whole or not at all, the newest while there is a network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread

import pytest
from support.meanwhile import meanwhile
from support.processes import eventually
from support.servers import Repository, Server, archive, git_daemon, pack, serving
from support.sites import Site

from nsbuild.buildpack import Store, parse_reference
from nsbuild.buildpack import store as store_module
from nsbuild.buildpack.buildpack import files_digest
from nsbuild.buildpack.download import Limits
from nsbuild.buildpack.store import Opened
from nsbuild.errors import ExitCode, NsbuildError

pytest_plugins = ["support.site_fixtures"]

QUICK = Limits(connect=20, read=20, pause=0.01, max_bytes=4 << 20)
FILLER = os.urandom(900_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", limits=QUICK)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.commit(**{name.replace("/", "__"): content for name, content in pack().items()})
    return made


def get(store: Store, text: str, *, newest: bool = True) -> Opened:
    with store.open(parse_reference(text), newest=newest) as opened:
        assert (opened.directory / "bin/compile").is_file()
        return opened


def says(opened: Opened) -> str:
    done = subprocess.run([opened.directory / "bin/compile"], capture_output=True, text=True, check=True)
    return done.stdout.removeprefix("compiled by ").strip()


def refused(store: Store, text: str, code: ExitCode, *words: str) -> NsbuildError:
    """Nothing is stored of it, and nothing is left."""
    before = sorted(path.name for path in store.root.glob("trees/*"))
    with pytest.raises(NsbuildError) as caught:
        get(store, text)
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(store.root) not in str(caught.value)
    assert sorted(path.name for path in store.root.glob("trees/*")) == before
    return caught.value


# -- archives


def test_an_archive_by_url_is_fetched_once(store: Store, server: Server) -> None:
    body = archive(pack(), top="owner-pack-1234")
    url = server.put("/pack.tgz", body, etag='"1"')
    first, second = get(store, url), get(store, url)
    assert says(first) == "one"
    assert first.archive == f"sha256:{hashlib.sha256(body).hexdigest()}" and first.url == url
    assert (second.directory, second.archive, second.warning) == (first.directory, first.archive, "")
    assert server.sent == [200, 304]
    server.put("/pack.tgz", archive(pack("two")), etag='"2"')
    assert says(get(store, url)) == "two"
    assert server.sent == [200, 304, 200]
    assert len(list(store.root.glob("trees/*"))) == 1, "the old one was not removed"
    assert not list(store.root.glob("refs/*/part*"))


def test_without_an_etag_the_same_bytes_are_the_same(store: Store, server: Server) -> None:
    url = server.put("/pack.tgz", archive(pack()))
    assert get(store, url).directory == get(store, url).directory
    assert server.sent == [200, 200]


def test_what_is_there_serves_when_nobody_asks_for_the_newest(store: Store, server: Server) -> None:
    url = server.put("/pack.tgz", archive(pack()))
    get(store, url)
    assert says(get(store, url, newest=False)) == "one"
    assert server.sent == [200]


@pytest.mark.parametrize("suffix", ["tgz", "tar.zst", "tar.xz", "zip", "tar"])
def test_kinds_of_archives(store: Store, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pack.{suffix}"
    for number, name in enumerate(("one", "two")):
        if suffix == "zip":
            with zipfile.ZipFile(path, "w") as made:
                for file, content in pack(name).items():
                    info = zipfile.ZipInfo(f"top/{file}")
                    info.external_attr = (stat.S_IFREG | 0o755) << 16
                    made.writestr(info, content)
        else:
            words = {"tgz": ["gzip"], "tar.zst": ["zstd", "-q"], "tar.xz": ["xz"], "tar": ["cat"]}[suffix]
            plain = subprocess.run(["gzip", "-d"], input=archive(pack(name)), capture_output=True, check=True).stdout
            path.write_bytes(subprocess.run(words, input=plain, capture_output=True, check=True).stdout)
        opened = get(store, str(path))
        assert says(opened) == name, number
        assert opened.archive == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_compressed_body_is_not_unpacked_on_the_way(store: Store, server: Server) -> None:
    """Servers that say of a .tgz that its content is gzip-encoded."""
    body = archive(pack())
    url = server.put("/pack.tgz", body, headers={"Content-Encoding": "gzip"})
    assert get(store, url).archive == f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_progress_is_told_in_bytes(tmp_path: Path, server: Server) -> None:
    told: list[tuple[str, int, int | None]] = []
    store = Store(tmp_path, limits=QUICK, progress=lambda *what: told.append(what))
    body = archive(pack(filler=FILLER))
    url = server.put("/pack.tgz", body)
    get(store, url)
    assert told[-1] == (url, len(body), len(body))
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


# -- a bad day


def test_a_download_goes_on_where_it_broke_off(store: Store, server: Server) -> None:
    body = archive(pack(filler=FILLER))
    url = server.put("/pack.tgz", body, etag='"1"', die_after=400_000, deaths=1)
    assert get(store, url).archive == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert server.sent == [200, 206]
    (headers,) = [headers for _, headers in server.asked if "Range" in headers]
    assert (headers["Range"], headers["If-Range"]) == ("bytes=400000-", '"1"')


def test_the_next_time_goes_on_too(store: Store, server: Server) -> None:
    body = archive(pack(filler=FILLER))
    url = server.put("/pack.tgz", body, etag='"1"', die_after=10_000, deaths=99)
    refused(store, url, ExitCode.REFUSED, "broke off after", "Try again")
    reached = sum(server.sent.count(status) for status in (200, 206)) * 10_000
    server.put("/pack.tgz", body, etag='"1"')
    asked = len(server.asked)
    assert get(store, url).archive == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert [headers.get("Range") for _, headers in server.asked[asked:]] == [f"bytes={reached}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_another_version_meanwhile_starts_again(store: Store, server: Server, ranges: bool) -> None:
    url = server.put("/pack.tgz", archive(pack(filler=FILLER)), etag='"1"', die_after=10_000, deaths=99)
    refused(store, url, ExitCode.REFUSED, "broke off")
    body = archive(pack("two", filler=FILLER[::-1]))
    server.put("/pack.tgz", body, etag='"2"', ranges=ranges)
    opened = get(store, url)
    assert says(opened) == "two" and opened.archive == f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_a_cut_off_body_is_no_buildpack(store: Store, server: Server) -> None:
    body = archive(pack())
    url = server.put("/pack.tgz", body, claimed=len(body) + 100)
    refused(store, url, ExitCode.REFUSED, url)
    server.put("/pack.tgz", body[:-20])
    refused(store, url, ExitCode.USAGE, url, "cut off or damaged")


def test_a_server_that_says_nothing(tmp_path: Path, server: Server) -> None:
    store = Store(tmp_path / "store", limits=replace(QUICK, read=0.5))
    url = server.put("/pack.tgz", archive(pack()), wait=30)
    refused(store, url, ExitCode.REFUSED, url, "said nothing for too long")


def test_redirects(store: Store, server: Server) -> None:
    server.put("/pack.tgz", archive(pack()), etag='"1"')
    url = server.put("/old.tgz", b"", status=302, headers={"Location": "/pack.tgz"})
    assert says(get(store, url)) == "one" and get(store, url).url == url
    loop = server.put("/loop.tgz", b"", status=302, headers={"Location": "/loop.tgz"})
    refused(store, loop, ExitCode.USAGE, "redirects without end")


def test_what_a_server_refuses(store: Store, server: Server) -> None:
    refused(store, f"{server.url}/nosuch.tgz", ExitCode.USAGE, "nosuch.tgz", "404", "Mend the URL")
    refused(store, server.put("/closed.tgz", b"", status=403), ExitCode.USAGE, "403", "access")
    refused(store, server.put("/ill.tgz", b"", status=503), ExitCode.REFUSED, "503", "later")


def test_a_web_page(store: Store, server: Server) -> None:
    page = b"<!DOCTYPE html><html>Sign in</html>"
    refused(store, server.put("/a.tgz", page, headers={"Content-Type": "text/html; x"}), ExitCode.USAGE, "web page")
    refused(store, server.put("/b.tgz", page), ExitCode.USAGE, "web page")


def test_what_is_too_large(store: Store, server: Server) -> None:
    large = os.urandom(5 << 20)
    refused(store, server.put("/a.tgz", large), ExitCode.REFUSED, "larger than 4 MB")
    assert not list(store.root.glob("refs/*/part"))
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as made:
        info = tarfile.TarInfo("bin/compile")
        info.size = 1 << 30
        made.addfile(info, _Zeros())
    url = server.put("/bomb.tgz", bomb.getvalue())
    refused(store, url, ExitCode.USAGE, url, "unpacks to more than")


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _device() -> tarfile.TarInfo:
    info = tarfile.TarInfo("dev")
    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
    return info


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (tarfile.TarInfo("../outside"), "../outside"),
        (tarfile.TarInfo("/etc/outside"), "/etc/outside"),
        (_device(), "dev"),
    ],
)
def test_members_that_have_no_place_in_a_buildpack(
    store: Store, server: Server, tmp_path: Path, member: tarfile.TarInfo, words: str
) -> None:
    url = server.put("/pack.tgz", archive(pack(), members=(member,)))
    refused(store, url, ExitCode.USAGE, url, words)
    assert not list(tmp_path.rglob("outside"))


def test_what_is_no_buildpack(store: Store, server: Server) -> None:
    refused(store, server.put("/a.tgz", archive({"README": "x"})), ExitCode.USAGE, "a.tgz", "no bin/compile")
    cnb = archive({"bin/build": "x", "bin/detect": "x", "buildpack.toml": ""})
    refused(store, server.put("/b.tgz", cnb), ExitCode.USAGE, "Cloud Native Buildpack")


def test_without_a_network_the_last_copy_serves(store: Store, tmp_path: Path, repository: Repository) -> None:
    with serving() as server:
        urls = [server.put("/pack.tgz", archive(pack()), etag='"1"'), repository.dumb(server)]
        first = [get(store, url) for url in urls]
        server.put("/pack.tgz", b"", status=503)
        assert "answers 503" in get(store, urls[0]).warning
    for url, before in zip(urls, first, strict=True):
        opened = get(store, url)
        assert opened.directory == before.directory
        assert url in opened.warning and re.search(
            r"The copy fetched on \d{4}-\d\d-\d\d \d\d:\d\d UTC", opened.warning
        )
        refused(store, url.replace("pack", "other"), ExitCode.REFUSED, "other")


def test_a_damaged_copy_is_fetched_again(store: Store, server: Server) -> None:
    url = server.put("/pack.tgz", archive(pack(), top="x"), etag='"1"')
    damaged = get(store, url).directory / "bin/compile"
    damaged.write_text("#!/bin/sh\necho compiled by an accident\n")
    opened = get(store, url)
    assert says(opened) == "one" and "damaged" in opened.warning
    assert server.sent == [200, 200]
    (store.root / "refs" / parse_reference(url).key / "entry.json").write_text("{half")
    assert says(get(store, url)) == "one"


def test_an_own_store_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NsbuildError, match="cannot be stored") as caught:
        get(Store(tmp_path / "file", limits=QUICK), server.put("/pack.tgz", archive(pack())))
    assert caught.value.code == ExitCode.REFUSED and "XDG_CACHE_HOME" in caught.value.fix


# -- git


def test_branches_tags_and_commits(store: Store, repository: Repository, tmp_path: Path) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.git("branch", "feature/x")
    second = repository.commit(**{"bin__compile": pack("two")["bin/compile"]})
    with serving() as server, git_daemon(tmp_path) as daemon:
        # A smart server, a dumb one, and none.
        for url in (f"{daemon}/repository", repository.dumb(server), f"file://{repository.path}"):
            meant = {"": second, "#main": second, "#v1": first, "#feature/x": first, f"#{first}": first}
            for ref, commit in {**meant, f"#{first[:9]}": first}.items():
                opened = get(store, url + ref)
                assert (opened.commit, opened.url) == (commit, url + ref)
                assert says(opened) == ("one" if commit == first else "two")
                assert not list(opened.directory.rglob(".git"))
            refused(store, f"{url}#nosuch", ExitCode.USAGE, url, "nosuch", "#")
            refused(store, f"{url}#{'0' * 40}", ExitCode.USAGE, url, "0" * 40)
    assert len(list(store.root.glob("trees/*"))) == 2


def test_a_branch_is_followed_and_a_commit_needs_no_network(store: Store, repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    with serving() as server:
        url = repository.dumb(server)
        get(store, url), get(store, f"{url}#{first}")
        asked = len(server.asked)
        assert get(store, f"{url}#{first}").commit == first
        assert len(server.asked) == asked
        get(store, url)
        assert all("/objects/" not in path for path, _ in server.asked[asked:]), "fetched though nothing had changed"
        second = repository.commit(**{"bin__compile": pack("two")["bin/compile"]})
        repository.dumb(server)
        assert get(store, url).commit == second
    assert get(store, f"{url}#{first}").warning == ""


def test_only_the_commit_is_fetched_where_the_server_can(repository: Repository, tmp_path: Path) -> None:
    """A history that is larger than what may be written."""
    repository.commit(ballast=os.urandom(3_000_000))
    repository.git("tag", "heavy")
    repository.git("rm", "--quiet", "ballast")
    repository.commit()
    store = Store(tmp_path / "store", limits=Limits(max_bytes=1 << 20))
    with serving() as server, git_daemon(tmp_path) as daemon:
        assert says(get(store, f"{daemon}/repository#main")) == "one"
        refused(store, f"{daemon}/repository#heavy", ExitCode.USAGE, "heavy")
        refused(store, repository.dumb(server), ExitCode.USAGE, "pack.git")


def test_submodules(store: Store, repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit(**{"helper": "helps"})
    repository.git("submodule", "--quiet", "add", "../inner", "lib/inner")
    repository.commit()
    with git_daemon(tmp_path) as daemon:
        for url in (f"{daemon}/repository", str(repository.path) + "#main"):
            opened = get(store, url)
            assert (opened.directory / "lib/inner/helper").read_text() == "helps"
            assert not list(opened.directory.rglob(".git"))


def test_a_repository_elsewhere_has_no_submodules_here(store: Store, repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "private")
    inner.commit(secret="hunter2")
    repository.git("submodule", "--quiet", "add", f"file://{inner.path}", "lib")
    repository.commit()
    with git_daemon(tmp_path) as daemon:
        refused(store, f"{daemon}/repository", ExitCode.USAGE, "not allowed")


def test_what_git_is_not_told(
    store: Store, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another repository, hooks of the user's, and a question that nobody answers."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hooks / name).chmod(0o755)
    (tmp_path / ".gitconfig").write_text(f"[core]\nhooksPath = {hooks}\n")
    for name, value in {"GIT_DIR": "/nonexistent", "GIT_INDEX_FILE": "/x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert says(get(store, f"file://{repository.path}")) == "one"
    assert not (tmp_path / "ran").exists()
    with serving() as server:
        server.put("/p.git/info/refs", b"", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        error = refused(store, f"http://me:hunter2@{server.url.partition('//')[2]}/p.git", ExitCode.USAGE, "p.git")
        assert "hunter2" not in str(error)


def test_no_such_repository(store: Store, tmp_path: Path) -> None:
    refused(store, f"file://{tmp_path}/nowhere", ExitCode.USAGE, "nowhere")
    with serving() as server:
        url = f"{server.url}/nowhere.git"
        refused(store, url, ExitCode.USAGE, url)
    refused(store, url, ExitCode.REFUSED, url)
    refused(store, "git://127.0.0.1:1/nowhere", ExitCode.REFUSED, "unable to connect", "refused")


# -- several at once, and the end of one

FETCH = """
import sys
from pathlib import Path
from nsbuild.buildpack import Store, parse_reference
with Store(Path(sys.argv[1])).open(parse_reference(sys.argv[2])) as opened:
    print(opened.directory)
"""


def fetching(store: Store, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, store.root, url], stdout=subprocess.PIPE, text=True)


def test_two_processes_want_the_same(store: Store, server: Server) -> None:
    url = server.put("/pack.tgz", archive(pack(filler=FILLER)), etag='"1"', wait=0.3)
    answers = {process.communicate()[0] for process in [fetching(store, url) for _ in range(3)]}
    assert len(answers) == 1 and answers != {""}
    assert sorted(server.sent) == [200, 304, 304]
    assert says(get(store, url)) == "one"


def test_killed_in_the_middle(store: Store, server: Server) -> None:
    """No half entry; what came is not fetched again."""
    body = archive(pack(filler=FILLER))
    url = server.put("/pack.tgz", body[:500_000], etag='"1"', claimed=len(body))
    process = fetching(store, url)
    part = store.root / "refs" / parse_reference(url).key / "part"
    assert eventually(lambda: part.exists() and part.stat().st_size >= 262_144)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    size = part.stat().st_size
    assert store.entries() == [] and not list(store.root.glob("trees/*"))
    server.put("/pack.tgz", body, etag='"1"')
    assert get(store, url).archive == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert server.asked[-1][1]["Range"] == f"bytes={size}-"


def test_what_a_killed_fetch_has_left_is_removed(store: Store, server: Server) -> None:
    get(store, server.put("/a.tgz", archive(pack())))
    (store.root / "trees/new-0123/tree/bin").mkdir(parents=True)
    get(store, server.put("/b.tgz", archive(pack("two"))))
    assert not list(store.root.glob("trees/new-*"))


def test_of_what_could_not_be_fetched_nothing_stays(store: Store, server: Server) -> None:
    url = server.put("/good.tgz", archive(pack()))
    get(store, url)
    refused(store, f"{server.url}/nosuch.tgz", ExitCode.USAGE, "404")
    assert store.collect() == []
    assert [entry.url for entry in store.entries()] == [url]
    assert len(list(store.root.glob("refs/*"))) == 1


def test_what_a_build_uses_is_not_removed(store: Store, server: Server) -> None:
    url = server.put("/pack.tgz", archive(pack()), etag='"1"')
    with store.open(parse_reference(url)) as opened:
        server.put("/pack.tgz", archive(pack("two")), etag='"2"')
        assert says(get(store, url)) == "two"
        assert store.remove(url) and not store.entries()
        assert says(opened) == "one"
    get(store, server.put("/other.tgz", archive(pack("three"))))
    assert len(list(store.root.glob("trees/*"))) == 1


# -- in a build


def two_archives(tmp_path: Path) -> tuple[str, str]:
    """Two references to one tree."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.tgz").write_bytes(archive(pack()))
    return str(tmp_path / "one.tgz"), str(tmp_path / "two.tgz")


def test_what_is_stored_again_while_it_is_removed_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = two_archives(tmp_path)
    for number in count():
        tree = get(store, one).directory
        with contextlib.ExitStack() as build, monkeypatch.context() as patch:
            opening = Thread(target=lambda build=build: build.enter_context(store.open(parse_reference(two))))

            def begin(opening: Thread = opening) -> None:
                opening.start()
                opening.join(0.5)  # it has the tree, or waits until it is gone

            taken = meanwhile(patch, [(os, "rmdir"), (os, "unlink")], number, begin)
            assert store.remove(one)
            patch.undo()
            if len(taken) <= number:
                break
            opening.join()
            assert store.entries()
            assert files_digest(tree) == f"sha256:{tree.name.partition('-')[2]}"
        assert store.remove(two)
    assert number > 3


def test_what_another_build_has_just_mended_is_not_removed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = two_archives(tmp_path)
    tree = get(store, one).directory
    for number in count():
        (tree / "bin/compile").write_text("damaged")
        with contextlib.ExitStack() as build, monkeypatch.context() as patch:

            def begin(build: contextlib.ExitStack = build) -> None:
                build.enter_context(store.open(parse_reference(two)))

            taken = meanwhile(patch, [(Store, "_remove_damaged"), (store_module, "locked")], number, begin)
            get(store, one)
            if len(taken) <= number:
                break
            assert files_digest(tree) == f"sha256:{tree.name.partition('-')[2]}"
    assert number > 1


def test_two_remove_the_same(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = two_archives(tmp_path)
    get(store, one)
    taken = meanwhile(monkeypatch, [(store_module, "locked")], 0, lambda: store.remove(one))
    assert store.remove(one) and taken
    assert store.entries() == [] and list(store.root.glob("*/*")) == []


def test_a_build_fetches_and_records(site: Site, server: Server, tmp_path: Path) -> None:
    body = archive(pack())
    url = server.put("/pack.tgz", body, etag='"1"')
    repository = Repository(tmp_path / "repository")
    commit = repository.commit(**{name.replace("/", "__"): content for name, content in pack("two").items()})
    git = repository.dumb(server)
    result = site.nsbuild(
        "build", site.app(), "-b", url, "-b", f"{git}#main", "-o", site.out, "--report", "r.json"
    ).ok()
    assert result.text == "compiled by one\ncompiled by two\n"
    one, two = json.loads((site.path / "r.json").read_text())["buildpacks"]
    assert (one["url"], one["archive"]) == (url, f"sha256:{hashlib.sha256(body).hexdigest()}")
    assert (two["url"], two["commit"], two["archive"]) == (f"{git}#main", commit, "")
    assert one["digest"].startswith("sha256:") and one["digest"] != two["digest"]
    server.close()
    began = time.monotonic()
    again = site.nsbuild("build", "app", "-b", url, "-o", site.out).ok()
    assert f"warning: The buildpack {url} cannot be downloaded" in again.err, time.monotonic() - began


def test_a_build_without_its_buildpack(site: Site, server: Server) -> None:
    result = site.build(site.app(), "-b", f"{server.url}/nosuch.tgz").refused(2, "nosuch.tgz", "404")
    assert result.record["exit_code"] == 2 and result.text == "" and not site.out.exists()
    secret = server.url.replace("//", "//me:hunter2@") + "/nosuch.tgz?token=hunter2"
    result = site.build("app", "--env", f"BUILDPACK_URL={secret}").refused(2, "404")
    assert "hunter2" not in result.err + json.dumps(result.record)


def test_a_repository_whose_default_branch_is_not_there(store: Store, repository: Repository, tmp_path: Path) -> None:
    """`git init --bare` for one name, `git push` of another."""
    bare = tmp_path / "bare.git"
    repository.git("init", "--quiet", "--bare", "--initial-branch=absent", str(bare))
    repository.git("push", "--quiet", str(bare), "HEAD:refs/heads/there")
    assert get(store, f"{bare}#there").commit
    with pytest.raises(NsbuildError, match="its default branch is not there"):
        get(store, str(bare))
    with pytest.raises(NsbuildError, match="no branch, tag or commit nowhere") as refusal:
        get(store, f"{bare}#nowhere")
    assert refusal.value.code == ExitCode.USAGE
