"""Asking OpenFeature: flagd's own evaluator over a flags file, or any provider's way to resolve a string."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, OpenFeatureError
from openfeature.flag_evaluation import FlagResolutionDetails

from nsbuild.errors import UsageError
from nsbuild.rollout.decide import Answer, Ask
from nsbuild.rollout.flags import Flags

Resolve = Callable[[str, str, EvaluationContext], FlagResolutionDetails[str]]

# flagd's evaluator logs a rule's every oddity, with a traceback, on the builder's stderr otherwise.
logging.getLogger("openfeature").addHandler(logging.NullHandler())


def evaluator(flags: Flags) -> Ask:
    """flagd's evaluator. Raises UsageError when it does not take the flags after all."""
    from openfeature.contrib.tools.flagd.core.flagd_core import FlagdCore

    core = FlagdCore()
    try:
        core.set_flags({"flags": {key: dict(flag) for key, flag in flags.flags.items()}})
    except OpenFeatureError as error:
        raise UsageError(f"The flags cannot be used: {error}.") from None
    return asking(core.resolve_string_value)


def asking(resolve: Resolve) -> Ask:
    """What asks it, and turns whatever it raises into an Answer."""

    def ask(flag: str, app: str, attributes: Mapping[str, Any]) -> Answer:
        # A tuple is no list to JsonLogic.
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}
        try:
            details = resolve(flag, "", EvaluationContext(app, plain))
        except OpenFeatureError as error:
            return _failed(error.error_code, told(error))
        except Exception as error:  # what JsonLogic raises depends on the rule: TypeError, ValueError, RecursionError
            return Answer(problem=told(error))
        if details.error_code is not None:
            return _failed(details.error_code, details.error_message or str(details.error_code))
        if not isinstance(details.value, str):
            return Answer(problem="its value is no text")
        return Answer(details.value, details.variant or "")

    return ask


def _failed(code: ErrorCode | None, problem: str) -> Answer:
    return Answer(known=False) if code == ErrorCode.FLAG_NOT_FOUND else Answer(problem=problem)


def told(error: Exception) -> str:
    """What it says, in one line and short."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
