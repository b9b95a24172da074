"""The ledger: what is spent, what is reserved, and where it stops."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from medtune.clients.budget import Budget, BudgetSpentError, Ledger, Prices, Spent, estimate
from medtune.clients.messages import content
from medtune.errors import ConfigError, MedtuneError

MOST = Spent(1, 100, 50)


def test_a_cost_is_tokens_by_the_price_of_a_million() -> None:
    prices = Prices(2.5, 10.0)
    assert Spent(3, 1_000_000, 200_000).cost(prices) == 2.5 + 2.0
    assert Spent(1, 400, 40).cost(Prices(output=5.0)) == 40 * 5 / 1e6
    assert Prices().cost(10**9, 10**9) == 0.0 and not Prices().known and Prices(input=0.0).known
    assert Spent(1, 2, 3) + Spent(4, 5, 6) - Spent(1, 1, 1) == Spent(4, 6, 8)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="prices"):
        Prices(input=value)


@pytest.mark.parametrize(
    "budget", [Budget(max_requests=3), Budget(max_tokens=450), Budget(max_cost=4.5e-4), Budget(max_tokens=599)]
)
def test_the_ledger_stops_at_its_limit(budget: Budget) -> None:
    ledger = Ledger(budget, Prices(1.0, 1.0))
    for _ in range(3):
        with ledger.reserved(MOST) as used:
            used.append(MOST)
    with pytest.raises(BudgetSpentError, match="3 requests, 450 tokens, 0.00045 USD so far") as caught:
        with ledger.reserved(MOST):
            raise AssertionError("this must not be sent")
    assert isinstance(caught.value, MedtuneError) and ledger.spent == Spent(3, 300, 150)


def test_an_error_frees_what_was_reserved() -> None:
    ledger = Ledger(Budget(max_requests=1), Prices())
    for _ in range(3):
        with pytest.raises(ValueError, match="no reply"), ledger.reserved(MOST):
            raise ValueError("no reply")
    with ledger.reserved(MOST) as used:
        used.append(Spent(1, 10, 1))
    assert ledger.spent == Spent(1, 10, 1)


def test_requests_in_flight_are_counted_at_their_most_and_then_at_what_they_took() -> None:
    """300 tokens hold two requests of at most 150 at once; each takes 20, so 8 are sent: 140 + 150 <= 300."""
    ledger, running, most = Ledger(Budget(max_tokens=300), Prices()), [0], [0]
    lock, together = threading.Lock(), threading.Event()

    def send(_: int) -> bool:
        try:
            with ledger.reserved(MOST) as used:
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                    if most[0] > 1:
                        together.set()
                together.wait(10)  # for a second one, which a busy machine may start late
                together.set()
                time.sleep(0.005)
                with lock:
                    running[0] -= 1
                used.append(Spent(1, 15, 5))
            return True
        except BudgetSpentError:
            return False

    with ThreadPoolExecutor(6) as pool:
        sent = sum(pool.map(send, range(20)))
    assert (sent, most[0], ledger.spent) == (8, 2, Spent(8, 120, 40))


def test_a_limit_in_money_needs_prices() -> None:
    with pytest.raises(ConfigError, match="budget.max_cost needs prices"):
        Ledger(Budget(max_cost=1.0), Prices())
    with pytest.raises(ValueError, match="limits must not be negative"):
        Budget(max_tokens=-1)


def test_an_estimate_counts_bytes_images_and_the_longest_reply() -> None:
    turns = [{"role": "user", "content": content([Image.new("RGB", (2, 2)), "x" * 41])}]
    assert estimate(turns, 30, image_tokens=500) == Spent(1, 11 + 8 + 500, 30)
    assert estimate([{"role": "user", "content": "ü" * 4}], None, 500) == Spent(1, 2 + 8, 1024)
