"""The `----->` lines of a stream that arrives in any pieces, and their times."""

from __future__ import annotations

import pytest

from nsbuild.build.steps import StepClock, without_values
from nsbuild.record import Step

STREAM = b"ignored\n-----> One\n       detail\n-----> Two...\r\n!-----> no\n       -----> neither\n-----> Three"


def clocked(*pieces: tuple[bytes, float], ended: float) -> list[tuple[str, float, float]]:
    clock = StepClock(100.0)
    for data, at in pieces:
        clock.feed(data, 100.0 + at)
    return [(step.text, step.at, step.seconds) for step in clock.steps(100.0 + ended)]


def test_a_step_lasts_until_the_next_one_and_the_last_until_the_end() -> None:
    pieces = ((b"-----> One\n", 1.0), (b"       detail\n", 2.0), (b"-----> Two\n", 4.0))
    assert clocked(*pieces, ended=9.0) == [("One", 1.0, 3.0), ("Two", 4.0, 5.0)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_may_end_anywhere(size: int) -> None:
    pieces = [(STREAM[start : start + size], 0.0) for start in range(0, len(STREAM), size)]
    assert [text for text, _, _ in clocked(*pieces, ended=1.0)] == ["One", "Two...", "Three"]


def test_a_step_begins_with_its_line_not_with_the_end_of_it() -> None:
    pieces = ((b"-----> Installing... ", 1.0), (b"done\n-----> Next\n", 6.0))
    assert clocked(*pieces, ended=7.0) == [("Installing... done", 1.0, 5.0), ("Next", 6.0, 1.0)]


def test_colours_and_carriage_returns_are_seen_through() -> None:
    data = b"\x1b[1;33m-----> Bold\x1b[0m\n10%\r50%\r-----> After a bar\n"
    assert [text for text, _, _ in clocked((data, 0.0), ended=1.0)] == ["Bold", "After a bar"]


def test_bytes_that_are_no_text_and_lines_without_end_and_steps_without_number() -> None:
    assert clocked((b"-----> \xff\n", 0.0), ended=1.0)[0][0] == "\ufffd"
    clock = StepClock(0.0)
    for _ in range(100):
        clock.feed(b"-----> long" + b"x" * 100_000, 0.0)
    (step,) = without_values(clock.steps(1.0), {})
    assert len(step.text) == 400
    clock = StepClock(0.0)
    clock.feed(b"-----> many\n" * 5000, 0.0)
    assert len(clock.steps(1.0)) == 1000


def test_nothing_printed_is_no_step() -> None:
    assert clocked(ended=1.0) == []
    assert clocked((b"\n\n----- no\n----> no\n------> no\n", 0.0), ended=1.0) == []


def test_a_config_vars_value_is_not_in_a_step() -> None:
    steps = [Step("Fetching https://user:hunter2@host of hunter2-longer, step 1", 0.0, 0.0)]
    (step,) = without_values(steps, {"TOKEN": "hunter2", "LONG": "hunter2-longer", "ONE": "1", "EMPTY": ""})
    assert step.text == "Fetching https://user:[TOKEN]@host of [LONG], step 1"
    (step,) = without_values([Step("the key is second-line.", 0.0, 0.0)], {"KEY": "first-line\n second-line\n"})
    assert step.text == "the key is [KEY]."
    clock = StepClock(0.0)
    clock.feed(b"-----> " + b"x" * 395 + b"hunter2", 0.0)
    (step,) = without_values(clock.steps(1.0), {"TOKEN": "hunter2"})
    assert step.text == "x" * 395 + "[TOKE"
