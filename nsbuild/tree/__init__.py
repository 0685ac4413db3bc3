"""Files and directory trees, when nothing in them can be trusted.

After a build everything in its workspace is hostile: links anywhere, directories of mode 0, FIFOs, paths
beyond PATH_MAX, trees deeper than there are descriptors. So all walking here goes by directory descriptor,
through no symbolic link, without recursion.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.tree.beneath import open_beneath, read_beneath
    from nsbuild.tree.copy import CopyReport, LeftOut, copy_tree
    from nsbuild.tree.links import break_hard_links
    from nsbuild.tree.remove import remove_tree
    from nsbuild.tree.replace import fsync_directory, replace_directory, write_atomic
    from nsbuild.tree.walk import tree_size

__all__ = [
    "CopyReport",
    "LeftOut",
    "break_hard_links",
    "copy_tree",
    "fsync_directory",
    "open_beneath",
    "read_beneath",
    "remove_tree",
    "replace_directory",
    "tree_size",
    "write_atomic",
]

_MODULES = ("beneath", "copy", "links", "remove", "replace", "walk")


def __getattr__(name: str) -> object:
    """Only what is used is imported: a launch needs `remove_tree`, and is over sooner than `copy` is imported."""
    from importlib import import_module

    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
