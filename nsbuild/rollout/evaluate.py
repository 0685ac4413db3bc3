"""Asking an OpenFeature provider: flagd's own evaluator over a flags file, or whatever the configuration names."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
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
    return _asking(core.resolve_string_value)


@contextlib.contextmanager
def named_provider(name: str) -> Iterator[Ask]:
    """The provider that `MODULE:CALLABLE` makes, shut down at the end. Raises UsageError when there is none.

    It starts threads, perhaps, and a launch cannot be cloned with threads alive: leave the block before.
    """
    try:
        module, _, attribute = name.partition(":")
        provider = getattr(import_module(module), attribute)()
        provider.initialize(EvaluationContext())
    except Exception as error:  # somebody else's code
        raise UsageError(
            f"The rollout's provider {name!r} cannot be had: {_told(error)}.",
            'It is named in nsbuild.toml: [rollout] provider = "MODULE:CALLABLE".',
        ) from None
    try:
        yield _asking(provider.resolve_string_details)
    finally:
        provider.shutdown()


def _asking(resolve: Resolve) -> Ask:
    def ask(flag: str, app: str, attributes: Mapping[str, Any]) -> Answer:
        # A tuple is no list to JsonLogic.
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}
        try:
            details = resolve(flag, "", EvaluationContext(app, plain))
        except OpenFeatureError as error:
            return _failed(error.error_code, _told(error))
        except Exception as error:  # what JsonLogic raises depends on the rule: TypeError, ValueError, RecursionError
            return Answer(problem=_told(error))
        if details.error_code is not None:
            return _failed(details.error_code, details.error_message or str(details.error_code))
        if not isinstance(details.value, str):
            return Answer(problem="its value is no text")
        return Answer(details.value, details.variant or "")

    return ask


def _failed(code: ErrorCode | None, told: str) -> Answer:
    return Answer(known=False) if code == ErrorCode.FLAG_NOT_FOUND else Answer(problem=told)


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
