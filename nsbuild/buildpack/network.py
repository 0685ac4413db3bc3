"""What a network needs of the operator's environment: proxies, certificates, and the files that these name."""

from __future__ import annotations

import os

from nsbuild.sandbox.host import SYSTEM_DIRECTORIES, leads_to
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import Bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
)


class NetworkNeeds(Value):
    """What a network needs of the operator's environment: variables, and the files that they name."""

    variables: Mapping[str, str] = {}
    files: tuple[str, ...] = ()


def network_needs(environ: Mapping[str, str]) -> NetworkNeeds:
    """Proxy variables in both cases, and the certificate variables whose files exist."""
    names = [*_PROXIES, *(name.upper() for name in _PROXIES)]
    variables = {name: environ[name] for name in names if environ.get(name)}
    files = []
    for name in _CERTIFICATES:
        # SSL_CERT_DIR is a list, as OpenSSL reads it.
        paths = [path for path in environ.get(name, "").split(":") if path.startswith("/") and os.path.exists(path)]
        if paths:
            variables[name] = environ[name]
            files += paths
    return NetworkNeeds(variables, tuple(dict.fromkeys(files)))


def network_binds(needs: NetworkNeeds, apps: str, root: str = "/") -> list[Bind]:
    """What makes the files of `needs` visible where their variables say, but for those that a view shows anyway.

    With a stack root (`root`) none is: they are the operator's, wherever they lie. Nothing is mounted below `apps`,
    the app's directory in the view.
    """
    binds = []
    for file in needs.files:
        path, source = os.path.normpath(file), os.path.realpath(file)
        if root != "/":
            path = leads_to(root, path) or path
        elif _shown(path) and _shown(source):
            continue
        if path != apps and not path.startswith(f"{apps}/"):
            binds.append(Bind(path, source, directory=os.path.isdir(source)))
    return binds


def _shown(path: str) -> bool:
    return path.split("/")[1] in SYSTEM_DIRECTORIES and not path.startswith("/var/tmp/")
