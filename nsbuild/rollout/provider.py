"""An OpenFeature provider that the configuration names, asked in a process of its own.

It may start threads, which would keep this process from cloning a namespace, or never answer, which a build must not
wait for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, NoReturn

from nsbuild.rollout.decide import Answer, Ask
from nsbuild.rollout.flags import FLAGS

LONGEST = 5.0
"""Seconds for all its answers."""
_CODE = """
import sys
sys.path += [path for path in sys.argv[2:] if path not in sys.path]
from nsbuild.rollout.provider import answer
answer(sys.argv[1])
"""


def named_provider(name: str) -> Ask:
    """What asks the provider that `MODULE:CALLABLE` makes. Never raises: that it cannot be had is an answer."""
    answers: dict[str, Answer] = {}

    def ask(flag: str, app: str, attributes: Mapping[str, Any]) -> Answer:
        if not answers:
            answers.update(_asked(name, app, attributes))
        return answers[flag]

    return ask


def _asked(name: str, app: str, attributes: Mapping[str, Any]) -> dict[str, Answer]:
    paths = [os.path.abspath(path) for path in sys.path if path]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CODE, name, *paths],
            input=json.dumps({"app": app, "attributes": dict(attributes)}).encode(),
            capture_output=True,
            timeout=LONGEST,
            check=True,
        )
        found = json.loads(done.stdout)
        return {flag: Answer(**found[flag]) for flag in FLAGS}
    except subprocess.TimeoutExpired:
        problem = f"it has not answered for {LONGEST:.0f} seconds"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        problem = said[-1][:200].rstrip(".") if said else f"it ended with {error.returncode}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"it has answered with nonsense ({type(error).__name__})"
    return dict.fromkeys(FLAGS, Answer(problem=f"the provider {name} of nsbuild.toml: {problem}"))


def answer(name: str) -> NoReturn:
    """The child's side: app and attributes on stdin, an Answer for each flag on stdout, both JSON."""
    from openfeature.evaluation_context import EvaluationContext

    from nsbuild.rollout.evaluate import asking, told

    question = json.load(sys.stdin)
    stdout, sys.stdout = sys.stdout, sys.stderr  # whatever it prints is no answer
    try:
        module, _, attribute = name.partition(":")
        provider = getattr(import_module(module), attribute)()
        provider.initialize(EvaluationContext())
    except Exception as error:  # somebody else's code
        sys.stderr.write(f"\n{told(error)}\n")
        sys.stderr.flush()
        os._exit(1)
    ask = asking(provider.resolve_string_details)
    answers = {flag: asdict(ask(flag, question["app"], question["attributes"])) for flag in FLAGS}
    stdout.write(json.dumps(answers))
    stdout.flush()
    os._exit(0)  # its threads need not be waited for
