"""What `lint` finds, where, and what it takes for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import archive, serving
from support.sites import BUILDPACKS, Site

from nsbuild.buildpack.lint import Lint, lint
from nsbuild.buildpack.lint_rules import RULES
from nsbuild.buildpack.shell import read_script

pytest_plugins = ["support.site_fixtures"]

HEAD = '#!/usr/bin/env bash\nset -e\nBUILD_DIR="$1"\nCACHE_DIR=${2:-}\n'
LINE = HEAD.count("\n") + 1

PLANTED = [
    ("build-dir-removed", 'rm -rf "$BUILD_DIR"'),
    ("build-dir-removed", 'mv "${BUILD_DIR}" "$(mktemp -d)/old"'),
    ("build-dir-removed", "rm -rf -- $1/"),
    ("app-moved", 'mv /app "$(mktemp -d)"'),
    ("app-moved", 'ln -s "$BUILD_DIR" /app'),
    ("app-moved", "command rm -rf $HOME"),
    ("onto-itself", 'rsync -a "$BUILD_DIR/" /app/'),
    ("onto-itself", 'if true; then cp -R "$BUILD_DIR"/vendor ~/vendor; fi'),
    ("onto-itself", "mkdir -p .cache && mv /app/.cache/puppeteer .cache"),
    ("onto-itself", 'ln -nsf "${BUILD_DIR}/.heroku/python" /app/.heroku/python'),
    ("home-compared", 'if [[ "$BUILD_DIR" == "$HOME" ]]; then echo same; fi'),
    ("home-compared", '[ /app != "$1" ] && echo other'),
    ("home-compared", 'test "$HOME" = "$(pwd)" || exit 1'),
    ("realpath-compared", '[[ "$(realpath "$BUILD_DIR")" == "$BUILD_DIR" ]] || exit 1'),
    ("realpath-compared", 'if [ "$1" != "$(cd "$1" && pwd -P)" ]; then exit 1; fi'),
    ("ssh", 'GIT_SSH=x ssh -T "git@github.com" || true'),
    ("credentials-left", 'echo "$KEY" > "$HOME/.ssh/id_rsa"'),
    ("credentials-left", "mkdir -p ~/.ssh"),
    ("credentials-left", "git config --global credential.helper store"),
    ("hard-links", 'cp -al node_modules "$CACHE_DIR/"'),
    ("hard-links", 'ln "$CACHE_DIR/x" y'),
    ("app-cleaned", "rm -rf /app/.local/lib"),
    ("app-cleaned", 'find "$HOME/lib" -name "*.a" -delete'),
    ("apt-sources", 'cat /etc/apt/sources.list > "$CACHE_DIR/sources.list"'),
    ("background", "redis-server ./redis.conf &"),
    ("background", "nohup ./server"),
    ("needs-root", "sudo make install"),
    ("needs-root", "  env -i PATH=/bin /usr/bin/docker build ."),
    ("installs-packages", "apt-get -y install libfoo"),
    ("installs-packages", "dpkg -i ./libfoo.deb"),
    ("writes-system", "echo x >> /etc/profile"),
    ("writes-system", "cp tool /usr/local/bin/tool"),
    ("writes-system", "curl -s -o /usr/local/bin/tool https://h.example/tool"),
    ("writes-system", 'tar xzf a.tgz -C "/opt/thing"'),
]

LOOK_ALIKES = """
# rm -rf "$BUILD_DIR"; sudo mount
echo "rm -rf $BUILD_DIR"; echo 'sudo docker build' "mv /app /tmp"
cat > "$BUILD_DIR/.profile.d/x.sh" <<EOT
rm -rf /app; sudo mount; echo x > /etc/profile; sleep 9 &
EOT
cat <<'EOT'
if [ "$HOME" = "$BUILD_DIR" ]; then ssh host; fi
EOT
message="apt-get install x > /usr/y"
rm -rf "$BUILD_DIR"/* "$BUILD_DIR/.cache" "${BUILD_DIR:?}/${name:?}" "${BUILD_DIR%/}x"
mv "$TMP/app" "$BUILD_DIR"
cp -R "$BUILD_DIR/a" "$BUILD_DIR/b"
cp -R "$CACHE_DIR/lib" "$BUILD_DIR/lib"
ln -s "$BUILD_DIR/a" "$BUILD_DIR/b"
command -v sudo docker >/dev/null && echo there
apt-get -y -d install libfoo
dpkg -x libfoo.deb "$BUILD_DIR/.apt"
cat /etc/apt/sources.list.d/ubuntu.sources 2>/dev/null
ls /usr/lib > /dev/null 2>&1
grep -r x /etc > "$CACHE_DIR/x"
mkdir -p /tmp/x /var/tmp/y
service() { echo "$1"; }
service web
[[ "$STACK" == "heroku-24" ]] && [ "$1" = "--help" ] || true
[[ "$(realpath "$BUILD_DIR")" == "$(realpath /app)" ]] || true
sleep 1 &
wait $!
"""


def planted(directory: Path, *lines: str, **files: str) -> Path:
    (directory / "bin").mkdir(parents=True)
    (directory / "bin/compile").write_text(HEAD + "\n".join(lines) + "\n")
    (directory / "bin/detect").write_text("#!/bin/sh\nexit 0\n")
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def told(found: Lint) -> list[tuple[str, int, str]]:
    return [(finding.file, finding.line, finding.name) for finding in found.findings]


@pytest.mark.parametrize(("name", "line"), PLANTED)
def test_each_class_is_found_where_it_is(name: str, line: str, tmp_path: Path) -> None:
    found = lint(planted(tmp_path, "echo before", line, "echo after"))
    assert ("bin/compile", LINE + 1, name) in told(found)
    assert {finding.line for finding in found.findings} == {LINE + 1}
    (rule,) = {rule.verdict for rule in RULES if rule.name == name}
    assert rule in {finding.verdict for finding in found.findings}
    assert all(finding.code == line.strip() for finding in found.findings)


def test_no_class_is_without_a_plant() -> None:
    assert {name for name, _ in PLANTED} == {rule.name for rule in RULES}


def test_look_alikes_are_nothing(tmp_path: Path) -> None:
    found = lint(planted(tmp_path, *LOOK_ALIKES.splitlines()))
    assert (told(found), found.verdict) == ([], "safe")


def test_the_gravest_is_the_verdict(tmp_path: Path) -> None:
    found = lint(planted(tmp_path, "sudo true", 'rm -rf "$BUILD_DIR"'))
    assert told(found) == [("bin/compile", LINE, "needs-root"), ("bin/compile", LINE + 1, "build-dir-removed")]
    assert found.verdict == "unfit"


def test_what_a_script_runs_is_read_and_nothing_else(tmp_path: Path) -> None:
    bad = "#!/bin/bash\nsudo true\n"
    lines = (
        'here=$(cd "$(dirname "$0")/.." && pwd)',
        'source "$here/lib/one.sh"',
        '"$here"/bin/steps/two',
        'for f in "$here"/more/*.sh; do . "$f"; done',
        'bash "$BUILD_DIR/bin/of_the_app.sh"',
    )
    files = {
        "lib__one.sh": ". $(dirname $BASH_SOURCE)/inner.sh\n",
        "lib__inner.sh": "sudo true\n",
        "bin__steps__two": bad,
        "more__three.sh": bad,
        "bin__of_the_app.sh": bad,
        "etc__publish.sh": bad,
        "test__run.sh": bad,
        "README.md": "sudo true\n",
    }
    found = lint(planted(tmp_path, *lines, **files))
    assert found.read == ("bin/compile", "bin/detect", "bin/steps/two", "lib/inner.sh", "lib/one.sh", "more/three.sh")
    assert told(found) == [
        ("bin/steps/two", 2, "needs-root"),
        ("lib/inner.sh", 1, "needs-root"),
        ("more/three.sh", 2, "needs-root"),
    ]


def test_what_is_not_shell_is_not_called_safe(tmp_path: Path) -> None:
    pack = planted(tmp_path, '"$(dirname "$0")"/support/build.rb', bin__support__build__rb="")
    (pack / "bin/support").mkdir(exist_ok=True)
    (pack / "bin/support/build.rb").write_text("#!/usr/bin/env ruby\nsystem('sudo')\n")
    assert told(lint(pack)) == [("bin/support/build.rb", 1, "not-read")]
    (pack / "bin/compile").write_bytes(b"\x7fELF\0\0")
    found = lint(pack)
    assert told(found) == [("bin/compile", 1, "not-read")] and found.verdict == "needs care"


def test_a_script_that_is_broken_is_said_to_be(tmp_path: Path) -> None:
    found = lint(planted(tmp_path, "echo fine", "if then (((", "sudo true"))
    assert "not-read" in {finding.name for finding in found.findings}
    deep = "$(" * 3000 + ")" * 3000
    (tmp_path / "bin/compile").write_text(f"#!/bin/sh\necho {deep}\n")
    lint(tmp_path)


def test_variables_are_followed() -> None:
    text = """
        build=$1; work="$build/sub"; home=${HOME}; x=$(pwd)
        f() { rm -r "$1"; }
        mv "$work" "$home" "$x" "${y:-/z}"
    """
    commands = [command.text for command in read_script(text.encode(), entry=True).commands]
    assert "mv <BUILD_DIR>/sub <HOME> <PWD> /z" in commands
    assert "rm -r <?>" in commands  # of a function, $1 is something else


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("inline", set()),
        ("procfile", set()),
        ("node", {"hard-links"}),
        ("python", {"hard-links", "home-compared", "onto-itself", "app-cleaned"}),
    ],
)
def test_our_own(name: str, classes: set[str]) -> None:
    """node falls back to a copy; python does on purpose what heroku/python did."""
    assert {finding.name for finding in lint(BUILDPACKS / name).findings} == classes


# -- the commands


@pytest.fixture
def packs(site: Site) -> Iterator[Site]:
    site.buildpack("true", "safe")
    site.buildpack('rm -rf "$1"', "care")
    site.buildpack("sudo true", "unfit")
    yield site


def test_the_command_says_it_with_its_status(packs: Site) -> None:
    assert packs.nsbuild("lint", "safe").ok().text == "safe: safe (2 scripts read)\n"
    care = packs.nsbuild("lint", "care")
    assert care.code == 1
    first, says, last = care.text.splitlines()
    assert first == 'bin/compile:2: needs care: build-dir-removed: rm -rf "$1"'
    assert says.startswith("    It removes") and last == "care: needs care (2 scripts read)"
    unfit = packs.nsbuild("lint", "unfit", "--json")
    assert unfit.code == 3
    document = json.loads(unfit.text)
    assert (document["schema"], document["verdict"], document["read"]) == (1, "unfit", ["bin/compile", "bin/detect"])
    (finding,) = document["findings"]
    assert (finding["name"], finding["file"], finding["line"]) == ("needs-root", "bin/compile", 2)
    packs.nsbuild("lint", "nowhere").refused(2, "nowhere")
    packs.nsbuild("lint", "home").refused(2, "bin/compile")


def test_list_add_update_and_remove(site: Site) -> None:
    with serving() as server:
        files = {"bin/compile": "#!/bin/sh\n", "bin/detect": "#!/bin/sh\n"}
        url = server.put("/pack.tgz", archive(files), etag='"1"')
        secret = server.url.replace("//", "//me:hunter2@") + "/pack.tgz?token=hunter2"
        assert site.nsbuild("buildpack", "ls").ok().text == ""
        site.nsbuild("buildpack", "add", url, secret).ok()
        listed = site.nsbuild("buildpack", "ls").ok().text
        assert len(listed.splitlines()) == 2 and listed.startswith(url) and "hunter2" not in listed
        rows = json.loads(site.nsbuild("buildpack", "ls", "--json").ok().text)
        assert [row["reference"] for row in rows] == [url, f"{url}?..."]
        assert rows[0]["archive"].startswith("sha256:") and rows[0]["fetched"].endswith("Z")
        assert all(b"hunter2" not in path.read_bytes() for path in site.home.rglob("*") if path.is_file())
        server.put("/pack.tgz", archive({**files, "new": "x"}), etag='"2"')
        result = site.nsbuild("buildpack", "update").ok()
        assert f"{url}?... needs what was not stored" in result.err
        after = json.loads(site.nsbuild("buildpack", "ls", "--json").ok().text)
        assert after[0]["archive"] != rows[0]["archive"] and after[1] == rows[1]
        site.nsbuild("buildpack", "rm", url).ok()
        site.nsbuild("buildpack", "rm", url).refused(2, url, "Nothing is stored")
        site.nsbuild("buildpack", "rm", f"{url}?...").ok()
    assert not list(site.home.glob(".cache/nsbuild/buildpacks/*/*"))
    assert site.nsbuild("buildpack", "add", url).refused(125, url, "connection").text == ""
