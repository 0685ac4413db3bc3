"""Real builds of a buildpack that works everywhere but in the namespace: 1 %, 5 %, 25 %, and the guard stops it."""

from __future__ import annotations

from rollout.fleets import Fleet
from support.processes import ROOT

pytest_plugins = ["support.builder_fixtures", "rollout.fleet_fixtures"]

ASSETS = """
[ ! -e "$1/broken" ] || { echo "the app's own mistake" >&2; exit 1; }
[ "$1" != /app ] || { echo "assets: no such directory" >&2; exit 1; }
"""
STAGES = (("1", range(50, 60)), ("5", range(30)), ("25", range(100)))
"""The percentage, and the apps that are built then."""


def test_a_bad_buildpack_is_stopped_by_itself_while_the_share_grows(fleet: Fleet) -> None:
    builder, flags = fleet.builder, fleet.flags
    builder.names |= {"flags.json.log", "flags.json.lock", "assets"}
    flags.unlink()
    if ROOT:
        builder.path.chmod(0o777)  # where the person begins a flags file
    packs = (builder.pack(ASSETS, "assets"), builder.pack('[ ! -e "$1/broken" ]'))

    def rollout(name: str, *words: str) -> tuple[int, str]:
        result = builder.nsbuild("rollout", name, "--rollout", flags, *words)
        return result.code, result.text + result.err

    def build(number: int) -> int:
        """Every other app has the bad buildpack, every fifteenth a mistake of its own."""
        (builder.build / "broken").unlink(missing_ok=True)
        if number % 15 == 7:
            (builder.build / "broken").touch()
        words = ("--rollout", flags, "--app", f"app-{number}")
        return builder.compile(*words, pack=packs[number % 2]).code

    looked: list[tuple[str, int]] = []
    text = ""
    for percent, apps in STAGES:
        assert rollout("set", "--namespace", percent, "--why", "the next stage")[0] == 0
        for number in apps:
            build(number)
            if number % 10 == 9:
                code, text = rollout("check")
                looked.append((percent, code))
                if code == 1:
                    break
    assert looked[-1] == ("25", 1) and {code for _, code in looked[:-1]} == {3}
    assert {row.arm for row in fleet.rows() if row.share == 0.01} == {"direct", "namespace"}

    notice = flags.with_name("flags.json.kill").read_text()
    assert f"STOPPED: {flags}.kill was written" in text
    for told in (text, notice):
        assert "failing: failure (builds that fail): 6 of 11 apps (54.5%) in the namespace, 3 of 37 apps" in told
        assert "6 of 6 have buildpack assets" in told and "latest     app-" in told
        assert "nsbuild rollout set --unkill --why TEXT" in told

    # app-4 has the bad buildpack, and is below 5 %.
    assert build(4) == 0 and rollout("decide", "--app", "app-4") == (0, "direct\n")
    assert "KILLED: every build goes direct" in rollout("status")[1]
    assert rollout("set", "--unkill", "--why", "mended")[0] == 0
    packs[0].joinpath("bin/compile").write_text("#!/bin/sh\n")
    assert build(4) == 0 and fleet.rows()[-1].arm == "namespace"
    assert rollout("check")[0] == 3, "it begins anew"
