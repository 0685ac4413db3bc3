"""Files and directory trees, when nothing in them can be trusted.

After a build everything in its workspace is hostile: links anywhere, directories of mode 0, FIFOs, paths
beyond PATH_MAX, trees deeper than there are descriptors. So all walking here goes by directory descriptor,
through no symbolic link, without recursion.
"""

from __future__ import annotations

from nsbuild.lazy import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.tree.beneath import open_beneath, read_beneath
    from nsbuild.tree.copy import CopyReport, LeftOut, copy_tree
    from nsbuild.tree.links import break_hard_links
    from nsbuild.tree.remove import remove_tree
    from nsbuild.tree.replace import fsync_directory, replace_directory, write_atomic
    from nsbuild.tree.walk import disk_usage, tree_size
    from nsbuild.tree.write import NameRefused, TreeWriter

__all__ = [
    "CopyReport",
    "LeftOut",
    "NameRefused",
    "TreeWriter",
    "break_hard_links",
    "copy_tree",
    "disk_usage",
    "fsync_directory",
    "open_beneath",
    "read_beneath",
    "remove_tree",
    "replace_directory",
    "tree_size",
    "write_atomic",
]

__getattr__ = names_of(__name__, __all__, ("beneath", "copy", "links", "remove", "replace", "walk", "write"))
