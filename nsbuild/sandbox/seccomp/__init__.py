"""The seccomp filter that every command gets, compiled ahead of time.

libseccomp compiles the rules (`python -m nsbuild.sandbox.seccomp`, see there); the launch path only reads the
result, because loading libseccomp through its binding takes longer than the launch.
"""

from __future__ import annotations

import os


class NoFilter(RuntimeError):
    """There is no compiled filter for this machine."""


def filter_path(machine: str, user_namespaces: bool) -> str:
    name = machine if user_namespaces else f"{machine}-no-userns"
    return f"{os.path.dirname(__file__)}/{name}.bpf"


def load(machine: str, user_namespaces: bool) -> bytes:
    """The BPF program for `seccomp(2)`. Raises NoFilter for a machine it was not compiled for."""
    try:
        with open(filter_path(machine, user_namespaces), "rb") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError as error:
        raise NoFilter(f"nsbuild has no seccomp filter for {machine}.") from error
