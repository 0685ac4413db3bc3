"""Stacks: root file systems that builds and processes see instead of the host's."""

from __future__ import annotations

from nsbuild.stack.root import HOST, StackRoot, open_stack_root, stored_stack_root

__all__ = ["HOST", "StackRoot", "open_stack_root", "stored_stack_root"]
