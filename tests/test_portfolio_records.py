"""What a snapshot adds up to: derived or checked, rounded only where that is asked for."""

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.database.errors import InvalidInput
from core.database.records import PortfolioSnapshotCreate, PortfolioSnapshotRead, Position, Positions, Rounding

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TENTH = Decimal("1E-10")
fine = st.decimals(-(10**6), 10**6, places=10)
finer = st.decimals(-(10**6), 10**6, places=14)


def position(**fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"instrument_token": 1, "quantity": Decimal(75), "last_price": Decimal("2.5")}
    return {**values, "average_price": Decimal(2), "pnl": Decimal("37.5"), **fields}


def snapshot(**fields: Any) -> PortfolioSnapshotCreate:
    return PortfolioSnapshotCreate(**values(**fields))


def values(**fields: Any) -> dict[str, Any]:
    flat: dict[str, Any] = dict.fromkeys(("realized_pnl", "unrealized_pnl", "cash"), Decimal(0))
    return {"portfolio_id": "p", "broker": "paper", "snapshot_time": NOON, **flat, **fields}


class TestPositions:
    def test_a_market_value_that_is_not_given_is_no_key_of_the_json(self):
        without, given_one = Position(**position()), Position(**position(market_value=Decimal("37.5")))
        assert "market_value" not in without.model_dump_json()
        assert '"market_value":"37.5"' in given_one.model_dump_json()
        stored = Positions([without, given_one])
        assert Positions.model_validate_json(stored.to_stored()) == stored

    def test_a_position_is_worth_its_market_value_or_else_quantity_times_price(self):
        assert Position(**position()).worth() == Decimal("187.5")
        assert Position(**position(market_value=Decimal("37.5"))).worth() == Decimal("37.5")
        assert Position(**position(market_value=Decimal(0))).worth() == 0

    @given(quantity=fine, price=fine)
    def test_worth_is_exact(self, quantity: Decimal, price: Decimal):
        worth = Position(**position(quantity=quantity, last_price=price)).worth()
        assert Fraction(worth) == Fraction(quantity) * Fraction(price)


class TestEquity:
    def test_it_is_derived_from_cash_and_positions(self):
        held = [position(), position(market_value=Decimal("-7.25"))]
        assert snapshot(cash=Decimal("0.0000000001"), positions=held).equity == Decimal("180.2500000001")

    def test_without_positions_it_must_be_given_and_is_taken_as_it_is(self):
        assert snapshot(cash=Decimal(5), equity=Decimal(7)).equity == 7
        with pytest.raises(ValidationError, match="must be given"):
            snapshot(cash=Decimal(5))

    def test_a_sum_of_too_many_decimals_is_refused_and_its_rounded_form_taken(self):
        held = [position(quantity=TENTH, last_price=Decimal("0.4"))]
        with pytest.raises(ValidationError, match=r"come to 0\.00000000004, which has more than 10"):
            snapshot(positions=held)
        for equity in (Decimal(0), TENTH):
            assert snapshot(positions=held, equity=equity).equity == equity

    def test_it_must_agree_with_the_positions_and_the_error_has_both_figures_and_the_mend(self):
        with pytest.raises(ValidationError, match=r"equity is 188, but .* come to 187\.5; .*market_value"):
            snapshot(positions=[position()], equity=Decimal(188))
        with pytest.raises(ValidationError, match="equity is"):
            snapshot(positions=[position()], equity=Decimal("187.5000000001"))

    def test_a_list_of_positions_that_is_changed_later_is_found_out(self):
        changed = snapshot(positions=[position()])
        changed.positions.append(Position(**position()))
        with pytest.raises(InvalidInput) as refused:
            changed.check_equity()
        assert refused.value.column == "equity"

    def test_what_is_stored_is_shown_whatever_it_adds_up_to(self):
        stored = values(positions=[position()], equity=Decimal(3), total_pnl=Decimal(0))
        assert PortfolioSnapshotRead(**stored).equity == 3

    @given(cash=fine, held=st.lists(st.tuples(st.integers(-1000, 1000), fine), min_size=1, max_size=6))
    def test_the_derived_sum_is_exact(self, cash: Decimal, held: list[tuple[int, Decimal]]):
        made = snapshot(cash=cash, positions=[position(quantity=Decimal(n), last_price=price) for n, price in held])
        assert Fraction(made.equity) == Fraction(cash) + sum(Fraction(n) * Fraction(price) for n, price in held)


class TestRounding:
    def test_what_fits_is_not_changed(self):
        plain = values(cash=Decimal(5), positions=[position()])
        made, changes = PortfolioSnapshotCreate.rounded(**plain)
        assert (made, changes) == (PortfolioSnapshotCreate(**plain), ())

    def test_each_change_is_told_with_its_place(self):
        third = Context(prec=30).divide(Decimal(1), Decimal(3))
        made, changes = PortfolioSnapshotCreate.rounded(
            **values(cash=third, positions=[position(), position(average_price=third)])
        )
        assert changes == (
            Rounding("positions.1.average_price", third, Decimal("0.3333333333")),
            Rounding("cash", third, Decimal("0.3333333333")),
            Rounding("equity", Context(prec=40).add(third, Decimal(375)), Decimal("375.3333333333")),
        )
        assert made.equity == Decimal("375.3333333333")

    def test_a_position_whose_price_is_rounded_keeps_what_it_is_worth(self):
        price = Decimal("0.12345678905")
        made, changes = PortfolioSnapshotCreate.rounded(
            **values(positions=[position(quantity=Decimal(1_000_000), last_price=price)])
        )
        assert made.equity == made.positions[0].market_value == Decimal("123456.78905")
        assert [change.field for change in changes] == ["positions.0.last_price"]

    def test_sums_are_those_of_the_rounded_parts_and_told_where_that_changes_them(self):
        half = Decimal("0.00000000005")
        made, changes = PortfolioSnapshotCreate.rounded(
            **values(realized_pnl=half, unrealized_pnl=half, total_pnl=TENTH, equity=Decimal(1))
        )
        assert made.total_pnl == 0
        assert Rounding("total_pnl", TENTH, Decimal(0)) in changes

    def test_figures_that_contradict_each_other_are_refused_all_the_same(self):
        with pytest.raises(InvalidInput, match="total_pnl is 5"):
            PortfolioSnapshotCreate.rounded(**values(total_pnl=Decimal(5), equity=Decimal(1)))
        with pytest.raises(InvalidInput, match="equity is 5"):
            PortfolioSnapshotCreate.rounded(**values(positions=[position()], equity=Decimal(5)))

    @pytest.mark.parametrize("wrong", [1.5, "1", True, Decimal("NaN"), Decimal("1E30")])
    def test_what_is_no_amount_is_refused_with_its_place(self, wrong: Any):
        for fields, column in (
            ({"cash": wrong, "equity": Decimal(1)}, "cash"),
            ({"positions": [position(pnl=wrong)]}, "positions"),
        ):
            with pytest.raises(InvalidInput) as refused:
                PortfolioSnapshotCreate.rounded(**values(**fields))
            assert refused.value.column == column

    @pytest.mark.parametrize("wrong", [{"cash": None}, {"positions": [5]}, {"broker": 5}, {"unknown": 1}])
    def test_whatever_else_is_wrong_is_ours_to_say(self, wrong: dict[str, Any]):
        with pytest.raises(InvalidInput):
            PortfolioSnapshotCreate.rounded(**{**values(equity=Decimal(1)), **wrong})

    @given(cash=finer, realized=finer, unrealized=finer, price=finer, quantity=finer)
    def test_any_amounts_give_a_record_that_agrees_with_itself(
        self, cash: Decimal, realized: Decimal, unrealized: Decimal, price: Decimal, quantity: Decimal
    ):
        made, changes = PortfolioSnapshotCreate.rounded(
            **values(
                cash=cash,
                realized_pnl=realized,
                unrealized_pnl=unrealized,
                positions=[position(last_price=price, quantity=quantity)],
            )
        )
        made.check_equity()
        assert made.total_pnl == made.realized_pnl + made.unrealized_pnl
        exact = Context(prec=80).add(cash, Context(prec=80).multiply(price, quantity))
        assert abs(made.equity - exact) <= TENTH
        for change in changes:
            assert change.stored == change.given.quantize(TENTH, ROUND_HALF_EVEN, Context(prec=80)) or (
                change.field in ("total_pnl", "equity")
            )
