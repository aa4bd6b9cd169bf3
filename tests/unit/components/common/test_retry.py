"""Calling again what may work the next time."""

import pytest
from vthink.components.common.retry import Backoff, retry


class Flaky:
    """Fails so many times with this error, then answers."""

    def __init__(self, failures: int, error: Exception):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


def always(error):
    return True


def test_what_fails_for_a_while_is_called_until_it_works_with_longer_and_longer_pauses():
    pauses, told = [], []
    call = Flaky(4, OSError("away"))
    answer = retry(
        call, transient=always, backoff=Backoff(first_s=1, longest_s=4, jitter=0), sleep=pauses.append,
        on_retry=lambda error, failures, left_s: told.append((str(error), failures)),
    )  # fmt: skip
    assert (answer, pauses) == ("answer", [1, 2, 4, 4])
    assert told == [("away", 1), ("away", 2), ("away", 3), ("away", 4)]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"transient": lambda error: False}, 1),
        ({"transient": always, "attempts": 3}, 3),
        ({"transient": always, "limit_s": 0}, 1),
    ],
    ids=["not transient", "attempts used up", "no time"],
)
def test_the_error_itself_is_raised_where_trying_again_is_of_no_use(options, calls):
    call = Flaky(9, error := OSError("gone"))
    with pytest.raises(OSError, match="gone") as caught:
        retry(call, sleep=lambda seconds: None, **options)
    assert caught.value is error
    assert call.calls == calls


def test_time_counts_from_the_first_failure_and_the_last_pause_ends_with_it():
    pauses = []
    call = Flaky(1, OSError())
    retry(call, transient=always, limit_s=2, backoff=Backoff(first_s=60, longest_s=60), sleep=pauses.append)
    assert pauses[0] == pytest.approx(2, abs=0.1)


def test_a_wait_that_the_other_side_asks_for_is_kept():
    pauses = []
    retry(Flaky(1, OSError()), transient=always, retry_after_s=lambda error: 33.0, sleep=pauses.append)
    assert pauses == [33.0]


def test_jitter_shortens_a_pause_by_its_part_at_most():
    backoff = Backoff(first_s=8, jitter=0.25)
    assert all(6 <= backoff.pause_s(1) <= 8 for _ in range(100))
    assert len({backoff.pause_s(1) for _ in range(10)}) > 1
