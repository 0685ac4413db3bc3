"""What a launch of /bin/true costs, ours and our peers': alternating, ratios, never an assertion.

Started by `scripts/bench launch` in an installed copy, as an ordinary user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from nsbuild.sandbox import Launcher, User, View, compose, read_host

NULL = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


def workspace(name: str) -> str:
    path = os.path.abspath(name)
    for part in ("app", "cache", "env", "tmp", "var-tmp"):
        os.makedirs(f"{path}/{part}", exist_ok=True)
    return path


def view_of(path: str, network: str = "host") -> View:
    places = {"/app": f"{path}/app", "/tmp": f"{path}/tmp", "/tmp/cache": f"{path}/cache", "/tmp/env": f"{path}/env"}
    return compose(
        read_host("/", places),
        workspace=path,
        user=User(os.getuid(), os.getgid()),
        home="/app",
        places=places,
        network=network,
        var_tmp=f"{path}/var-tmp",
    )


def bwrap(network: bool) -> list[str]:
    """Mounts and namespaces equivalent to ours."""
    path = workspace("bwrap")
    words = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    words += ["--new-session", *(["--unshare-net"] if network else [])]
    for name in sorted(os.listdir("/")):
        if name in ("usr", "etc", "opt", "var", "srv", "bin", "sbin") or name.startswith("lib"):
            source = f"/{name}"
            words += (
                ["--symlink", os.readlink(source), source]
                if os.path.islink(source)
                else ["--ro-bind", source, source]
            )
    words += ["--ro-bind", "/sys", "/sys", "--proc", "/proc", "--dev", "/dev", "--dir", "/home", "--dir", "/run"]
    words += [
        "--bind",
        f"{path}/app",
        "/app",
        "--bind",
        f"{path}/tmp",
        "/tmp",
        "--bind",
        f"{path}/var-tmp",
        "/var/tmp",
    ]
    for name in ("passwd", "group", "nsswitch.conf"):
        words += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    return [*words, "/bin/true"]


def spawned(argv: list[str]) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    return run


def posix_spawn() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    os.makedirs("build", exist_ok=True)
    entry = os.path.join(os.path.dirname(sys.executable), "nsbuild")
    candidates: dict[str, Callable[[], None]] = {"posix_spawn": posix_spawn}
    for name, argv in {
        "unshare(1) -Urm": ["unshare", "-Urm", "/bin/true"],
        "bwrap, equivalent mounts": bwrap(False),
        "bwrap, equivalent, own network": bwrap(True),
        "bwrap, the leanest": ["bwrap", "--ro-bind", "/", "/", "/bin/true"],
        "proot": ["proot", "-b", "/:/", "/bin/true"],
        "python3 -I -S -c pass": ["/usr/bin/python3", "-I", "-S", "-c", "pass"],
    }.items():
        if shutil.which(argv[0]):
            candidates[name] = spawned(argv)
        else:
            print(f"{name}: {argv[0]} is not installed, left out")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    imports = f"import sys; sys.path.append({site!r}); import nsbuild.cli.wrappers"
    candidates["the same, and what exec imports"] = spawned(["/usr/bin/python3", "-I", "-S", "-c", imports])
    candidates["nsbuild exec, cold"] = spawned([entry, "exec", "--build-dir", "build", "--", "/bin/true"])
    launcher = Launcher()
    for name, network in (("ours, warm Launcher", "host"), ("ours, warm, own network", "none")):
        view = view_of(workspace(f"warm-{network}"), network)
        candidates[name] = lambda view=view: ensure(launcher.launch(view, ["/bin/true"]).status)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for action in candidates.values():
        action()
        action()
    for _ in range(pairs):
        for name, action in candidates.items():
            times[name].append(timed(action))
    base = "bwrap, equivalent mounts"
    reference = statistics.median(times.get(base) or times["posix_spawn"])
    print(f"\n{pairs} rounds, alternating; median milliseconds, ratio to {base}\n")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:34} {median:8.2f} ms   x {median / reference:5.2f}   (fastest {min(values):.2f})")

    outcome = launcher.launch(view_of(workspace("warm-host")), ["/bin/true"])
    print(
        "\nwhere a warm launch spends its time:",
        ", ".join(f"{k} {v * 1000:.2f} ms" for k, v in outcome.timings.items()),
    )
    grown(launcher)
    at_once(pairs)
    launcher.close()


def ensure(status: int | None) -> None:
    assert status == 0, status


def grown(launcher: Launcher) -> None:
    """A caller with 400 MB, and one with 8 threads, launches no slower: its memory and threads are not forked."""
    view = view_of(workspace("warm-host"))
    action = lambda: ensure(launcher.launch(view, ["/bin/true"]).status)  # noqa: E731
    small = statistics.median(timed(action) for _ in range(20))
    ballast = bytearray(400 << 20)
    for i in range(0, len(ballast), 4096):
        ballast[i] = 1
    large = statistics.median(timed(action) for _ in range(20))
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    threaded = statistics.median(timed(action) for _ in range(20))
    stop.set()
    for thread in threads:
        thread.join()
    print(f"caller grown by 400 MB: x {large / small:.2f}; and with 8 threads: x {threaded / small:.2f}")


def at_once(pairs: int) -> None:
    """Launches a second when several are under way at a time: threads that share one Launcher, against bwrap."""
    words = bwrap(False)
    for width in (1, 4, 16, 64):
        total = max(width, 64)
        with Launcher() as launcher:
            views = [view_of(workspace(f"at-once/{number}")) for number in range(width)]
            for view in views:
                ensure(launcher.launch(view, ["/bin/true"]).status)
            ours = rate(width, total, lambda n: ensure(launcher.launch(views[n], ["/bin/true"]).status))  # noqa: B023
        line = f"{width:3} at a time: ours {ours:6.0f} launches/s"
        if shutil.which("bwrap"):
            theirs = rate(width, total, lambda n: spawned(words)())
            line += f", bwrap {theirs:6.0f}/s, ratio {ours / theirs:.2f}"
        print(line)


def rate(width: int, total: int, action: Callable[[int], None]) -> float:
    def worker(number: int) -> None:
        for _ in range(total // width):
            action(number)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(width)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (total // width) * width / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
