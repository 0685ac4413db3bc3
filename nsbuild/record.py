"""The record of a build: one documented value, written as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import nsbuild


@dataclass
class Step:
    """A `----->` line of a compile: `at`, in seconds since the compile began, and how many until the next one."""

    text: str
    at: float
    seconds: float


@dataclass
class Phase:
    """One call of a buildpack. Times in seconds, `began` since 1970, memory in KiB; `signal` is what killed it, if
    anything did.

    `exit_code` is None when the phase was killed or could not be started. `steps` are a compile's.
    """

    name: str
    buildpack: str
    seconds: float = 0.0
    began: float = 0.0
    exit_code: int | None = None
    signal: int | None = None
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_kib: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


@dataclass
class BuildpackRecord:
    """`name` is what bin/detect printed; `report` what bin/report did.

    `digest` is of the files that were run. What was fetched has its `url` (without secrets), and the digest of the
    `archive` or the `commit` of the git repository.
    """

    reference: str
    digest: str
    name: str = ""
    url: str = ""
    archive: str = ""
    commit: str = ""
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class Slug:
    """`format` is `directory`, `tgz`, `tar.zst`, `squashfs` or `oci`; `bytes` its size, of a directory the sum of its
    files. `digest` is that of the file, or of the image's manifest.

    `sizes` are the bytes in files, before compression, below each top directory of the slug (`.`: in the top itself);
    `left_out` names the sockets, FIFOs and devices that could not be archived.
    """

    path: str
    format: str
    bytes: int = 0
    digest: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass
class Record:
    """What a build did. No config var's value is ever in it.

    `source_version` is the commit that was built, empty where it was none. `layout` is a name of
    `nsbuild.sandbox.Layout`, `path` is `namespace` or `direct` and `path_reason` why it was. `result` is
    `succeeded`, or the error's sentence, and `exit_code` what `nsbuild build` exits with.
    `stack_root` is the digest of `nsbuild.stack.StackRoot`, empty for the host's own system directories.
    `attached` tells how `compile` and `exec` got each directory into the view, and why; `limits` what bounded them
    and by which means, and `usage` (fields of `nsbuild.sandbox.limits.Usage`) what they used. `sweep` tells what
    was done about files left in HOME; `warnings` is for people. `rollout` is what was
    decided and came of it, with --rollout. `first` is the build before, with --rebuild.
    """

    id: str
    source: str
    layout: str
    run_path: str
    stack: str
    schema: int = 1
    source_version: str = ""
    stack_root: str = ""
    path: str = "namespace"
    path_reason: str = "the default"
    nsbuild: str = nsbuild.__version__
    kernel: str = platform.release()
    started: str = ""
    seconds: float = 0.0
    uid: int = 0
    attached: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    cache_hit: bool = False
    buildpacks: list[BuildpackRecord] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    process_types: dict[str, str] = field(default_factory=dict)
    slug: Slug | None = None
    sweep: list[dict[str, Any]] = field(default_factory=list)
    audit: list[dict[str, Any]] = field(default_factory=list)
    audit_problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    result: str = ""
    exit_code: int | None = None
    rollout: dict[str, Any] = field(default_factory=dict)
    first: Record | None = None

    def to_json(self) -> str:
        """The record as written with `--report`."""
        return json.dumps(asdict(self), indent=2) + "\n"
