"""The simulation of bursts: small ones, whose outcome follows from a few numbers."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks.bursts import Place, five_tries, simulate
from tap_stack import TapStackArgs


def dev(units: int = 20, concurrency: int = 10, scaling: int = 1) -> TapStackArgs:
    return TapStackArgs(
        environment_suffix="dev",
        files_table_capacity=units,
        files_concurrency=concurrency,
        files_table_scaling=scaling,
    )


@pytest.mark.parametrize("tier", ["dev", "staging", "prod"])
def test_no_file_of_a_burst_is_lost_in_any_environment(tier: str) -> None:
    done = simulate(TapStackArgs(environment_suffix=tier), 7_000, 500)
    assert (done.recorded, done.dead) == (7_000, 0)


def test_files_were_lost_when_the_function_gave_up_at_once() -> None:
    """The figures of before, with all of an account's concurrency."""
    args = TapStackArgs(environment_suffix="dev", files_concurrency=0)
    done = simulate(args, 10_000, 500, policy=five_tries)
    assert 1_500 < done.dead < 1_800
    assert done.recorded + done.dead == 10_000


def test_too_much_concurrency_waits_for_the_table_until_it_fails() -> None:
    assert simulate(dev(concurrency=10), 3_000, 500).dead == 0
    assert simulate(dev(concurrency=1_000), 3_000, 500).dead > 0


def test_the_last_file_comes_when_the_table_has_earned_its_units() -> None:
    """20 units a second and 6,000 saved ones are 2,000 files after 300 s at the earliest."""
    done = simulate(dev(), 2_000, 500)
    assert done.dead == done.failed == 0
    assert done.seconds >= 300
    assert done.busy > done.needed == pytest.approx(2_000 * 0.125)


def test_a_table_that_grows_is_done_sooner() -> None:
    assert simulate(dev(scaling=4), 5_000, 500).seconds < simulate(dev(), 5_000, 500).seconds


def test_a_burst_has_the_same_outcome_each_time() -> None:
    one, other = (asdict(simulate(dev(), 1_500, 500, seed=7)) for _ in range(2))
    assert one == other


def test_units_that_were_not_used_are_lent_for_five_minutes() -> None:
    place = Place(10, 10, 6)
    for _ in range(500):
        assert place.has_units(0.0)
        place.take()
    assert not place.has_units(0.0)
    assert place.has_units(0.1)
    assert place.has_units(10_000.0)
    assert place.left == 3_000


def test_a_place_grows_after_two_minutes_above_its_target() -> None:
    place = Place(100, 400, 6)
    seen = []
    for files in (1_000, 1_000, 2_000, 9_000):
        for _ in range(files):
            place.take()
        place.end_minute()
        seen.append(round(place.units))
    assert seen == [100, 143, 286, 400]
