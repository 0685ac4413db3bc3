"""Slugs: what a build leaves, in every format that it is written in and read from."""

from __future__ import annotations

from nsbuild.slug.archive import Contents, Watcher, sizes, write_tree
from nsbuild.slug.boot import boot
from nsbuild.slug.formats import format_of
from nsbuild.slug.marker import MARKER, RELEASE_FILE, Marked, mark, marked
from nsbuild.slug.oci import Image
from nsbuild.slug.opened import as_directory
from nsbuild.slug.output import Output, check_output
from nsbuild.slug.prepare import Prepared, prepare
from nsbuild.slug.unpack import unpack

__all__ = [
    "MARKER",
    "RELEASE_FILE",
    "Contents",
    "Image",
    "Marked",
    "Output",
    "Prepared",
    "Watcher",
    "as_directory",
    "boot",
    "check_output",
    "format_of",
    "mark",
    "marked",
    "prepare",
    "sizes",
    "unpack",
    "write_tree",
]
