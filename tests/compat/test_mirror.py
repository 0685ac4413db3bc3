"""The mirror, asked by real clients."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
from support.sites import Site

from compat.mirror import PROXIES, files, mirror, reachable, repositories

pytest_plugins = ("support.site_fixtures",)
HOST = "archives.invalid"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the operator's: everything here is on the loopback interface."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


def call(argv: list[str | Path], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(argv, env={**own, **environ}, capture_output=True, text=True, timeout=60, check=False)


def test_curl_gets_a_file_of_a_host_that_does_not_exist(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(os.urandom(300_000))
    url = f"https://{HOST}/a/archive%201.gz"
    answer = files(lambda path: archive if path == "/a/archive 1.gz" else None)
    with mirror({HOST: answer}, tmp_path) as running:
        found = call(["curl", "-sS", "--fail", "-o", tmp_path / "got", url], running.environ)
        absent = call(["curl", "-sS", "--fail", f"https://{HOST}/b"], running.environ)
        head = call(["curl", "-sS", "-I", url], running.environ)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "got").read_bytes() == archive.read_bytes()
    assert absent.returncode == 22 and "404" in absent.stderr
    assert "content-length: 300000" in head.stdout.lower()
    assert running.seen[0] == f"GET {url}"


def test_who_does_not_know_its_authority_is_told_so_by_curl(tmp_path: Path) -> None:
    with mirror({HOST: files(lambda path: None)}, tmp_path) as running:
        proxy = {"https_proxy": running.environ["https_proxy"]}
        assert "certificate" in call(["curl", "-sS", f"https://{HOST}/"], proxy).stderr


@contextmanager
def elsewhere(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Another HTTPS host, which the mirror does not answer for: its port, and its authority's certificate."""

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from elsewhere")

        def log_message(self, *_: object) -> None:
            pass

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    certificate = tmp_path / "elsewhere.pem"
    authority.cert_pem.write_to_path(str(certificate))
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1], certificate
        server.shutdown()
        thread.join()


def test_other_hosts_are_passed_through_untouched(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as (port, certificate), mirror({HOST: files(lambda path: None)}, tmp_path) as running:
        environ = {**running.environ, "CURL_CA_BUNDLE": str(certificate)}
        assert call(["curl", "-sS", f"https://localhost:{port}/"], environ).stdout == "hello from elsewhere"
        assert running.seen == []
        refused = call(["curl", "-sS", "https://nowhere.invalid/"], running.environ)
        assert refused.returncode != 0 and "502" in refused.stderr
    assert not reachable("nowhere.invalid")


def test_an_operators_proxy_is_asked_and_its_refusal_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive"
    archive.write_text("by way of both")
    other = tmp_path / "other"
    other.mkdir()
    with mirror({HOST: files(lambda path: archive)}, tmp_path) as outer:
        monkeypatch.setenv("https_proxy", outer.environ["https_proxy"])
        with mirror({"other.invalid": files(lambda path: None)}, other) as inner:
            environ = {**inner.environ, "CURL_CA_BUNDLE": outer.environ["CURL_CA_BUNDLE"]}
            assert call(["curl", "-sS", f"https://{HOST}/"], environ).stdout == "by way of both"
            assert inner.seen == [] and reachable(HOST)


def test_git_fetches_a_commit_by_its_name(tmp_path: Path) -> None:
    work = tmp_path / "work"
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    call(["git", "init", "-q", work], {})
    (work / "file").write_text("old")
    for message in ("old", "new"):
        call(["git", "-C", work, "add", "."], {})
        call(["git", "-C", work, *identity, "commit", "-q", "--allow-empty", "-m", message], {})
    old = call(["git", "-C", work, "rev-parse", "HEAD^"], {}).stdout.strip()
    bare = tmp_path / "bare"
    call(["git", "clone", "-q", "--bare", work, bare], {})
    found = {"owner/work": work, "owner/bare": bare}
    with mirror({HOST: repositories(found.get)}, tmp_path) as running:
        for name in ("owner/work.git", "owner/bare"):
            got = tmp_path / f"got-{Path(name).stem}"
            call(["git", "init", "-q", got], {})
            fetched = call(["git", "-C", got, "fetch", "-q", f"https://{HOST}/{name}", old], running.environ)
            assert fetched.returncode == 0, fetched.stderr
            assert call(["git", "-C", got, "show", f"{old}:file"], {}).stdout == "old"
        assert call(["git", "ls-remote", f"https://{HOST}/owner/none"], running.environ).returncode == 128


def test_a_build_reaches_it_without_being_told(site: Site) -> None:
    """nsbuild carries the proxy and the certificates into the sandbox: no --pass-env, no --bind."""
    archive = site.write("archive", "an archive")
    certificates = site.mkdir("certificates")
    with mirror({HOST: files(lambda path: archive)}, certificates) as running:
        pack = site.buildpack(f'curl -sS --fail https://{HOST}/x >"$1/got"')
        site.build(site.app(), pack, env=running.environ).ok()
    assert (site.out / "got").read_text() == "an archive"
