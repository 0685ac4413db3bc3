"""What must not differ between two builds of the same source, and is ours to say."""

from __future__ import annotations

from nsbuild.build.head import commit_time
from nsbuild.build.source import Source
from nsbuild.slug.archive import TIME

BUILD_ID = "00000000"
"""Of every such build: in the classic layout's paths, and in what some buildpacks write down of their environment."""


def variables(source: Source) -> dict[str, str]:
    """What compilers and packagers go by: https://reproducible-builds.org/specs/source-date-epoch, and the order of
    Python's sets. The time is that of the commit, or what every file of an archive has. With it py_compile writes
    bytecode that knows its source by a hash. Raises Refused.
    """
    committed = commit_time(source.checkout) if source.checkout is not None and source.checkout.commit else 0
    return {
        "SOURCE_DATE_EPOCH": str(max(committed, TIME)),
        "PYTHONHASHSEED": "0",
        "REQUEST_ID": BUILD_ID,
        "DYNO": f"build.{BUILD_ID}",
    }
