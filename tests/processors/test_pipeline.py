from __future__ import annotations

import math
from typing import Any

import pytest

from processors.allocation import Allocator
from processors.pipeline import (
    Outcome,
    Processor,
    ProcessorError,
    Retry,
    Work,
    check_outcomes,
    load_processor,
)
from processors.schema import Order

WORK = Work(b"1" * 16, 0, Order("c", []), 0, 0)


def not_callable() -> object:
    return object()


def broken() -> Processor:
    raise ZeroDivisionError


def test_the_default_processor_is_fefo() -> None:
    assert isinstance(load_processor("processors.pipeline:fefo"), Allocator)


@pytest.mark.parametrize(
    "place",
    [
        "no.such.module:fefo",
        "processors.pipeline:nothing",
        "processors.pipeline",
        "tests.processors.test_pipeline:not_callable",
        "tests.processors.test_pipeline:broken",
    ],
)
def test_a_processor_that_can_not_be_loaded_is_named_with_its_flag(place: str) -> None:
    with pytest.raises(ProcessorError, match=rf"{place}.*--processor"):
        load_processor(place)


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [Outcome("allocated"), Outcome("allocated")],
        [Outcome("allocated", "because")],
        [Outcome("rejected")],
        [Outcome("rejected", "")],
        [Outcome("rejected", "x" * 201)],
    ],
)
def test_answers_that_are_no_outcomes_are_refused(outcomes: list[Outcome]) -> None:
    with pytest.raises(ProcessorError):
        check_outcomes(outcomes, [WORK])


def test_a_status_of_its_own_is_refused() -> None:
    odd: Any = "cancelled"
    with pytest.raises(ProcessorError):
        check_outcomes([Outcome(odd, "why")], [WORK])


@pytest.mark.parametrize("outcome", [Outcome("allocated"), Outcome.rejected("x" * 200)])
def test_outcomes_are_accepted(outcome: Outcome) -> None:
    check_outcomes([outcome], [WORK])


@pytest.mark.parametrize("after_s", [-1, math.nan, math.inf])
def test_a_retry_is_after_a_time_that_comes(after_s: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Retry(after_s)
