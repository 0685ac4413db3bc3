"""The classic buildpack API: what is called, with which arguments, environment and order."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.buildpack.buildpack import Buildpack, install, open_reference
    from nsbuild.buildpack.environment import build_environment, check_config_vars, write_env_dir
    from nsbuild.buildpack.network import NetworkNeeds, network_binds, network_needs
    from nsbuild.buildpack.phases import Invocation, compile_, detect, release, report
    from nsbuild.buildpack.procfile import ProcfileError, parse_procfile
    from nsbuild.buildpack.release_yaml import Release, ReleaseError, parse_release

__all__ = [
    "Buildpack",
    "Invocation",
    "NetworkNeeds",
    "ProcfileError",
    "Release",
    "ReleaseError",
    "build_environment",
    "check_config_vars",
    "compile_",
    "detect",
    "install",
    "network_binds",
    "network_needs",
    "open_reference",
    "parse_procfile",
    "parse_release",
    "release",
    "report",
    "write_env_dir",
]

_MODULES = ("buildpack", "environment", "network", "phases", "procfile", "release_yaml")


def __getattr__(name: str) -> object:
    """`nsbuild compile` needs one module of these, and cannot wait for the others."""
    from importlib import import_module

    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
