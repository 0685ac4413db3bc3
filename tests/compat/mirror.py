"""A proxy on the loopback interface that answers for the hosts of runtime archives, where they cannot be reached.

Buildpacks have the addresses of their archives written down. So the mirror is an HTTPS proxy with a certificate
authority of its own: it ends the TLS of the hosts it answers for, and passes everything else through untouched, to
the operator's own proxy where there is one.
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trustme

PATIENCE = 10.0
"""Seconds to reach a host in."""

CERTIFICATES = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"),
)
"""What names the file of trusted authorities to OpenSSL, Python's requests, curl, pip, Node.js and git."""

DEBIANS = "/etc/ssl/certs/ca-certificates.crt"
"""Debian's bundle, which its OpenSSL does not name: that has a directory."""

PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
"""What decides how a client reaches an HTTPS host."""

Answer = Callable[["Inside"], None]
"""What answers for a host: it writes a whole response."""


def files(find: Callable[[str], Path | None]) -> Answer:
    """Answers with the file that `find` has for a path, else with 404."""

    def answer(request: Inside) -> None:
        path = find(unquote(urlsplit(request.path).path))
        if path is None:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(path.stat().st_size))
        request.end_headers()
        if request.command != "HEAD":
            with path.open("rb") as stream:
                shutil.copyfileobj(stream, request.wfile)

    return answer


def repositories(find: Callable[[str], Path | None]) -> Answer:
    """Answers as a Git host does, with the repository that `find` has for `OWNER/NAME`."""

    def answer(request: Inside) -> None:
        url = urlsplit(request.path)
        owner, _, rest = url.path.strip("/").partition("/")
        name, _, service = rest.partition("/")
        repository = find(f"{owner}/{name.removesuffix('.git')}")
        if repository is None or not service:
            request.send_error(404)
            return
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        common = subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", repository, "rev-parse", "--absolute-git-dir"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        environ = {
            "PATH": os.defpath,
            "GIT_PROJECT_ROOT": common,
            "GIT_HTTP_EXPORT_ALL": "1",
            # Clones are often somebody else's; and a lock file of pip, Poetry or uv names a commit, not a branch.
            **{"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
            **{"GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1": "true"},
            "PATH_INFO": f"/{service}",
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environ, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")]
        headers = {name: value for name, _, value in lines if name}
        request.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


class Inside(BaseHTTPRequestHandler):
    """One connection of a client that believes to have reached a host: what is inside the TLS."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").partition(":")[0]
        self.server.mirror.seen.append(f"{self.command} https://{host}{self.path}")
        answer = self.server.mirror.hosts.get(host)
        if answer is None:
            self.send_error(404)
        else:
            answer(self)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class _Proxy(BaseHTTPRequestHandler):
    """The proxy itself: CONNECT and nothing else."""

    server: _Server

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if host in self.server.mirror.hosts:
            self.send_response(200)
            self.end_headers()
            try:
                with self.server.context.wrap_socket(self.connection, server_side=True) as inside:
                    Inside(inside, self.client_address, self.server)
            except OSError:
                pass  # the client has seen enough, or does not know our authority and says so itself
        else:
            try:
                outside = reach(host, int(port))
            except OSError as error:
                self.send_error(502, f"cannot reach {host}: {error}")
            else:
                self.send_response(200)
                self.end_headers()
                with outside:
                    _pump(self.connection, outside)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, mirror: Mirror, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.mirror = mirror
        self.context = context

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news; anything else is a fault of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Mirror:
    """The running proxy. `environ` is what makes curl, git, pip and the rest use it, `seen` what was asked of it."""

    def __init__(self, hosts: Mapping[str, Answer], environ: dict[str, str]) -> None:
        self.hosts = hosts
        self.environ = environ
        self.seen: list[str] = []


@contextmanager
def mirror(hosts: Mapping[str, Answer], directory: Path) -> Iterator[Mirror]:
    """Serves until the context ends. Its certificates are written to a file in `directory`, beside the usual ones."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts).configure_cert(context)
    bundle = directory / "certificates.pem"
    usual = Path(os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or DEBIANS)
    bundle.write_bytes((usual.read_bytes() if usual.exists() else b"") + b"\n" + authority.cert_pem.bytes())
    bundle.chmod(0o644)
    environ = dict.fromkeys(CERTIFICATES, str(bundle)) | dict.fromkeys(PROXIES, "")
    running = Mirror(hosts, environ)
    with _Server(running, context) as server:
        proxy = f"http://127.0.0.1:{server.server_address[1]}"
        environ |= {"https_proxy": proxy, "HTTPS_PROXY": proxy}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def reachable(host: str) -> bool:
    """Whether HTTPS of a host can be reached from here, by the operator's proxy where there is one."""
    try:
        reach(host, 443).close()
    except OSError:
        return False
    return True


def reach(host: str, port: int) -> socket.socket:
    """A connection to a host, by the operator's proxy where there is one. Raises OSError."""
    proxies = urllib.request.getproxies()
    if "https" not in proxies or urllib.request.proxy_bypass(host):
        return socket.create_connection((host, port), PATIENCE)
    proxy = urlsplit(proxies["https"])
    connection = socket.create_connection((proxy.hostname or "", proxy.port or 80), PATIENCE)
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
    if proxy.username:
        words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(words.encode()).decode()}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = connection.recv(1)
        if not received:
            break
        answer += received
    status = answer.split(b" ", 2)
    if len(status) < 2 or status[1] != b"200":
        connection.close()
        raise OSError(f"the proxy refuses: {answer.splitlines()[0].decode('latin-1') if answer else 'nothing said'}")
    return connection


def _pump(one: socket.socket, other: socket.socket) -> None:
    peers = {one: other, other: one}
    one.settimeout(None)
    other.settimeout(None)
    while True:
        readable, _, _ = select.select(list(peers), [], [], 300)
        if not readable:
            return
        for each in readable:
            try:
                received = each.recv(1 << 16)
                if not received:
                    return
                peers[each].sendall(received)
            except OSError:
                return
