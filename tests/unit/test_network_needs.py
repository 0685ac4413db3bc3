"""What a network needs of the operator's environment: the variables, and the files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbuild.buildpack import NetworkNeeds, network_binds, network_needs
from nsbuild.sandbox import Bind


def test_variables_come_with_the_files_they_name(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    environ = {
        "https_proxy": "http://127.0.0.1:3128",
        "CURL_CA_BUNDLE": str(bundle),
        "PIP_CERT": str(tmp_path / "missing.pem"),
        "PIP_INDEX_URL": "https://example.com",
    }
    needs = network_needs(environ)
    assert needs.variables == {"https_proxy": "http://127.0.0.1:3128", "CURL_CA_BUNDLE": str(bundle)}
    assert network_binds(needs, "/app") == [Bind(str(bundle), str(bundle.resolve()), directory=False)]


@pytest.mark.parametrize("path", ["/etc/ssl/certs", "/usr/share/ca-certificates", "/app/ca.pem", "/app"])
def test_what_is_shown_anyway_and_what_lies_in_the_app_is_not_bound(path: str) -> None:
    assert network_binds(NetworkNeeds(files=(path,)), "/app") == []


def test_links_are_followed_and_names_normalised(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    link = tmp_path / "link"
    link.symlink_to("certs")
    [bind] = network_binds(NetworkNeeds(files=(f"{link}/",)), "/app")
    assert bind == Bind(str(link), str((tmp_path / "certs").resolve()), directory=True)


def test_the_private_var_tmp_hides_the_hosts() -> None:
    assert [bind.path for bind in network_binds(NetworkNeeds(files=("/var/tmp/ca.pem",)), "/app")] == [
        "/var/tmp/ca.pem"
    ]
