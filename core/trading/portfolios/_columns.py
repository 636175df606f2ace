"""Which of a file's columns is which, and whose snapshots they are."""

from collections.abc import Mapping

from sqlalchemy import text

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.trading.portfolios._file_errors import SnapshotFileHeader
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._intake import Table

_REQUIRED = ("snapshot_time", "equity")
_MONEY = SNAPSHOT_COLUMNS[4:]


async def known_brokers(manager: DatabaseManager, portfolio_id: str | None, broker: str | None) -> dict[str, str]:
    """Each portfolio's broker; raises `InvalidInput` where the one that is named is not there or with another broker."""
    async with manager.get_session(read_only=True) as session:
        rows = await session.execute(text("SELECT portfolio_id, broker FROM portfolios"))
        known: dict[str, str] = {row.portfolio_id: row.broker for row in rows}
    if portfolio_id is None:
        return known
    if portfolio_id not in known:
        raise InvalidInput(
            f"portfolio_id: there is no portfolio {portfolio_id!r}",
            hint="Create it first: panda portfolio create.",
            column="portfolio_id",
        )
    if broker is not None and broker != known[portfolio_id]:
        raise InvalidInput(
            f"broker: the portfolio {portfolio_id} is with {known[portfolio_id]}, not with {broker}", column="broker"
        )
    return known


def columns_of(table: Table, given: Mapping[str, str], *, portfolio_id: str | None, rounding: bool) -> dict[str, str]:
    """Our fields that the file has, to its own names."""
    if unknown := [ours for ours in given if ours not in SNAPSHOT_COLUMNS]:
        raise InvalidInput(
            f"columns: {unknown[0]!r} is none of {', '.join(SNAPSHOT_COLUMNS)}",
            hint="Name our column first, then the file's.",
            column="columns",
        )
    has = f"its columns are {', '.join(name or '(no name)' for name in table.header)}"
    if absent := [theirs for theirs in given.values() if theirs not in table.header]:
        raise SnapshotFileHeader(f"{table.name} has no column {absent[0]!r}; {has}")
    found = {ours: given.get(ours, ours) for ours in SNAPSHOT_COLUMNS if ours in given or ours in table.header}
    if missing := [name for name in _REQUIRED if name not in found]:
        raise SnapshotFileHeader(f"{table.name} has no column for {' and '.join(missing)}; {has}")
    if portfolio_id is None and "portfolio_id" not in found:
        raise InvalidInput(
            f"portfolio_id: {table.name} does not say whose snapshots it holds",
            hint="Say the portfolio (portfolio_id, --portfolio) or the column that names it.",
            column="portfolio_id",
        )
    inexact = [found[ours] for ours in _MONEY if ours in found and found[ours] in table.floats]
    if inexact and not rounding:
        raise InvalidInput(
            f"file: column {inexact[0]} holds floats, which are no exact amounts",
            hint="Take them rounded to 10 places: round_to_scale=True (--round).",
            column="file",
        )
    return found
