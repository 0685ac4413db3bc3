"""nsbuild detect: the buildpacks' answers, and nothing else."""

from __future__ import annotations

import pytest
from support.sites import Site, snapshot

pytest_plugins = ["support.site_fixtures"]


def test_it_prints_what_a_platform_prints(site: Site) -> None:
    one = site.buildpack("echo never", "one", detect='test -e "$1/Procfile" && echo; echo "  My Framework "')
    two = site.buildpack("echo never", "two", detect=None)
    app = site.app()
    before = snapshot(app)
    result = site.nsbuild("detect", app, "-b", one, "-b", two).ok()
    assert result.text == "-----> My Framework app detected\n-----> two app detected\n"
    assert snapshot(app) == before
    assert not site.caches() and not (site.path / "app.tgz").exists()


def test_ten_when_one_does_not_match(site: Site) -> None:
    one, two = site.buildpack(name="one"), site.buildpack(name="two", detect="echo no Gemfile; exit 1")
    result = site.nsbuild("detect", site.app(), "-b", one, "-b", two)
    result.refused(10, str(two), "no Gemfile")
    assert result.out == b""


def test_it_sees_no_cache_and_all_the_source(site: Site) -> None:
    pack = site.buildpack('echo kept > "$2/kept"')
    site.build(site.app(Procfile="web: x\n", only="here"), pack).ok()
    look = site.buildpack(name="look", detect='cat "$1/only"; ls /tmp/cache')
    assert site.nsbuild("detect", site.path / "app", "-b", look).ok().text == "-----> here app detected\n"


def test_options_that_are_about_a_slug_are_none_of_its(site: Site) -> None:
    site.nsbuild("detect", site.app(), "-b", site.buildpack(), "-o", "out").refused(2, "-o")


@pytest.mark.parametrize("script", ["#!/nonexistent/python\n", "#!/bin/bash\r\nexit 0\r\n", "#!/etc/passwd\n"])
def test_one_that_cannot_be_run_is_no_answer(site: Site, script: str) -> None:
    """A wrong interpreter, the line ends of Windows, what is no program: not "does not match"."""
    pack = site.buildpack(detect=script)
    result = site.nsbuild("detect", site.app(), "-b", pack).refused(
        125, f"bin/detect of {pack} cannot be run", "first"
    )
    assert "not compatible" not in result.err
    site.nsbuild("build", "app", "-b", pack).refused(125, "cannot be run")
    site.copy(pack, "set/pack")
    site.nsbuild("detect", "app", "--default-buildpacks", site.path / "set").refused(125, "cannot be run")
