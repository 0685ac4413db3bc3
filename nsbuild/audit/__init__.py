"""Does a slug, a cache or any directory remember where it was built?"""

from __future__ import annotations

from nsbuild.audit.auditor import Auditor
from nsbuild.audit.directory import audit_directory
from nsbuild.audit.finding import Finding, Problem, Report, Severity
from nsbuild.audit.needles import Matcher, Needle, needles_for
from nsbuild.audit.output import as_dict, as_json, as_sarif, as_text
from nsbuild.audit.waivers import Waiver, apply_waivers, read_waivers

__all__ = [
    "Auditor",
    "Finding",
    "Matcher",
    "Needle",
    "Problem",
    "Report",
    "Severity",
    "Waiver",
    "apply_waivers",
    "as_dict",
    "as_json",
    "as_sarif",
    "as_text",
    "audit_directory",
    "needles_for",
    "read_waivers",
]
