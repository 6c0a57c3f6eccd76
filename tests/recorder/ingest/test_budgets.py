"""recorder/ingest/budgets.py: what is spent comes back with time and bytes, and no faster by connecting again."""

from __future__ import annotations

import pytest

from recorder.ingest import budgets
from recorder.ingest.budgets import Budget, Budgets


def test_a_budget() -> None:
    budget = Budget(10, 2, 100.0)
    assert budget.spend(10, 100.0) and not budget.is_whole(104.9) and budget.is_whole(105.0)
    assert budget.spend(2, 101.0) and not budget.spend(0.5, 101.0)
    budget.earn(5)
    assert budget.spend(4.5, 101.0) and not budget.spend(1, 101.0)
    assert budget.spend(10, 1000.0) and not budget.spend(1, 1000.0)  # never more than it may have
    budget.earn(50)
    assert budget.spend(10, 1000.0) and not budget.spend(1, 1000.0)


def test_only_a_holder_who_has_spent_nothing_lately_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MAX_HOLDERS", 3)
    all_of_them = Budgets()
    spender = all_of_them.of("spender", 0.0)
    assert spender.spend(1000, 0.0) and all_of_them.of("spender", 0.0) is spender
    others = [all_of_them.of(f"other {number}", 0.0) for number in range(5)]
    assert all_of_them.of("spender", 0.0) is spender and all_of_them.of("other 4", 0.0) is others[4]
    assert all_of_them.of("other 0", 0.0) is not others[0]
    for number in range(5, 10):
        all_of_them.of(f"other {number}", 1e6)
    assert all_of_them.of("spender", 1e6) is not spender
