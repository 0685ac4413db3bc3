"""Which path a build takes: a function of the app, its attributes and the flags, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsbuild.errors import UsageError
from nsbuild.rollout.bucket import bucket
from nsbuild.rollout.decision import DIRECT, PATHS, Decision, Step
from nsbuild.rollout.flags import DENY, FLAGS, RULES

Attributes = Mapping[str, str | tuple[str, ...]]
_RESERVED = ("app", "bucket", "targetingKey")
_LONGEST = 256
_LONGEST_VALUE = 1024
_MOST = 64


@dataclass(frozen=True)
class Answer:
    """What an evaluator says to one flag: `problem` is a clause when it could say nothing.

    `known` is False where it has no such flag.
    """

    value: str = ""
    variant: str = ""
    known: bool = True
    problem: str = ""


Ask = Callable[[str, str, Mapping[str, Any]], Answer]
"""(flag, app, attributes) -> Answer. Never raises."""


@dataclass(frozen=True)
class Source:
    """Flags that can be asked, from wherever they are. `problem` is a sentence when they are not what was wanted.

    `ask` is None where there are no flags at all. `share` is the namespace's, 0 to 1, None where that is not known.
    """

    ask: Ask | None
    salt: str = ""
    digest: str = ""
    problem: str = ""
    share: float | None = None


def decide(app: str, attributes: Attributes, source: Source, *, override: str = "", kill: str = "") -> Decision:
    """The path, and the whole chain of questions that led to it; what comes first wins.

    `kill` is why everything goes direct (`nsbuild.rollout.killed`), `override` a path that a person has given.
    Raises UsageError for an app, an attribute or an override that is none.
    """
    check_app(app)
    if override and override not in PATHS:
        raise UsageError(f"{override[:60]!r} is no path.", f"It is one of {', '.join(PATHS)}.")
    steps: list[Step] = []
    place = bucket(source.salt, app) if source.ask is not None else None

    def settled(path: str, reason: str, rule: str = "", problem: str = "") -> Decision:
        told = " ".join(sentence for sentence in (source.problem, problem) if sentence)
        return Decision(
            app=app,
            path=path,
            reason=reason,
            rule=rule,
            bucket=place,
            flags=source.digest,
            problem=told,
            share=source.share if reason in ("percentage", "off") else None,
            attributes=dict(attributes),
            steps=tuple(steps),
        )

    steps.append(Step("kill", DIRECT if kill else "", kill or "not thrown"))
    if kill:
        return settled(DIRECT, "kill")
    steps.append(Step("override", override, "given" if override else "none given"))
    if override:
        return settled(override, "override")
    if source.ask is None:
        steps.append(Step("flags", DIRECT, "there are none that can be used"))
        return settled(DIRECT, "trouble")
    context = {**attributes, "app": app, "bucket": place}
    for flag, reason in FLAGS.items():
        answer = source.ask(flag, app, context)
        if not answer.known:
            steps.append(Step(reason, "", f"there is no flag {flag}"))
            continue
        if not answer.problem and answer.value not in ("", *PATHS):
            answer = Answer(problem=f"its variant {answer.variant[:60]!r} is no path")
        if not answer.problem and flag == DENY and answer.value not in ("", DIRECT):
            answer = Answer(problem=f"its variant {answer.variant[:60]!r} denies nothing")
        if answer.problem:
            steps.append(Step(reason, DIRECT, answer.problem))
            return settled(DIRECT, "trouble", problem=f"The flag {flag} cannot be evaluated: {answer.problem}.")
        told = f"{flag} gives {answer.variant}" if answer.variant else f"{flag} gives nothing"
        steps.append(Step(reason, answer.value, f"{told} (bucket {place})" if reason == "percentage" else told))
        if answer.value:
            return settled(answer.value, reason, answer.variant if flag == RULES else "")
    steps.append(Step("off", DIRECT, "nothing above has settled it"))
    return settled(DIRECT, "off")


def check_app(app: str) -> None:
    """Raises UsageError for what is no id of an app."""
    if not app:
        raise UsageError("The id of the app is empty.", "Give --app ID.")
    if len(app) > _LONGEST:
        raise UsageError(f"The id of the app, {app[:20]!r}..., has {len(app)} characters, and may have {_LONGEST}.")
    if not app.isprintable() or " " in app:
        raise UsageError(f"The id of the app, {app!r}, has characters that cannot be printed, or a space.")


def attributes_of(words: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """`NAME=VALUE` as given with --attr. `buildpacks` is a list: separated by commas, or given several times.

    Raises UsageError.
    """
    made: dict[str, str | tuple[str, ...]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--attr {word[:60]!r} is no NAME=VALUE.", "Write it as --attr team=red.")
        if name in _RESERVED:
            raise UsageError(f"--attr {name}: that is nsbuild's own.", "Give it another name.")
        if len(value) > _LONGEST_VALUE:
            raise UsageError(f"--attr {name}: its value has {len(value)} characters, and may have {_LONGEST_VALUE}.")
        if name == "buildpacks":
            made[name] = (*made.get(name, ()), *(one for one in value.split(",") if one))
        elif name in made:
            raise UsageError(f"--attr {name} is there twice.")
        else:
            made[name] = value
    if len(made) > _MOST:
        raise UsageError(f"There are {len(made)} attributes, and there may be {_MOST}.")
    return made
