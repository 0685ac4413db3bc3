"""The classic buildpack API: what is called, with which arguments, environment and order."""

from __future__ import annotations

from nsbuild.lazy import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.buildpack.app_json import AppJsonError, TestScripts, parse_test_scripts
    from nsbuild.buildpack.buildpack import Buildpack, check_buildpack, install
    from nsbuild.buildpack.chosen import Chosen, choose
    from nsbuild.buildpack.environment import build_environment, check_config_vars, write_env_dir
    from nsbuild.buildpack.network import NetworkNeeds, network_binds, network_needs
    from nsbuild.buildpack.phases import Invocation, compile_, detect, release, report, shell
    from nsbuild.buildpack.procfile import ProcfileError, parse_procfile
    from nsbuild.buildpack.reference import Reference, parse_reference
    from nsbuild.buildpack.release_yaml import Release, ReleaseError, parse_release
    from nsbuild.buildpack.report_yaml import ReportError, parse_report
    from nsbuild.buildpack.store import Store

__all__ = [
    "AppJsonError",
    "Buildpack",
    "Chosen",
    "Invocation",
    "NetworkNeeds",
    "ProcfileError",
    "Reference",
    "Release",
    "ReleaseError",
    "ReportError",
    "Store",
    "TestScripts",
    "build_environment",
    "check_buildpack",
    "check_config_vars",
    "choose",
    "compile_",
    "detect",
    "install",
    "network_binds",
    "network_needs",
    "parse_procfile",
    "parse_reference",
    "parse_release",
    "parse_report",
    "parse_test_scripts",
    "release",
    "report",
    "shell",
    "write_env_dir",
]

__getattr__ = names_of(
    __name__,
    __all__,
    (
        "app_json",
        "buildpack",
        "chosen",
        "environment",
        "network",
        "phases",
        "procfile",
        "reference",
        "release_yaml",
        "report_yaml",
        "store",
    ),
)
