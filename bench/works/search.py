"""Find instruments for what somebody types, in a master of 200,000: the same made file as two brokers have it.

Three hundred lines as people type them: symbols whole and begun, contracts by their terms, names, what is misspelt, single
letters. Peers look for the line anywhere in symbol or name, in the database or in a list; neither knows a contract by its
terms. The limit fetches rows by a range of the symbol's index and ranks nothing. Here are means over the mix; medians and the
slowest of each are told by `python -m bench.latency`.
"""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import cycle, islice
from typing import TypeAlias

from bench import master, panda
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["PANDA", "ROWS", "SEARCHERS", "WORK", "Searcher", "lines", "prepare"]

Searcher: TypeAlias = Callable[[str], Awaitable[int]]
"""Finds at most twenty instruments for a line and says how many."""

ROWS = 2 * master.ROWS
LIMIT = "asyncpg, rows of a prefix"
PANDA = "Alpha Panda"
_LIKE = "asyncpg, ILIKE on both sides"
_MOST = 20
_SECOND = 1 << 32  # added to the tokens of the second broker's file
_COLUMNS = "instrument_token, exchange, trading_symbol, name, instrument_type, expiry, strike, lot_size"
_PREFIX = (
    f"SELECT {_COLUMNS} FROM instruments WHERE trading_symbol >= $1 AND trading_symbol < $1 || 'zzz'"
    f" ORDER BY trading_symbol LIMIT {_MOST}"
)
_ANYWHERE = (
    f"SELECT {_COLUMNS} FROM instruments WHERE is_active AND (trading_symbol ILIKE $1 OR name ILIKE $1)"
    f" ORDER BY trading_symbol LIMIT {_MOST}"
)
_MONTHS = ("nov", "dec", "january", "feb", "aug")


def lines() -> list[str]:
    """What is typed, in an order of chance that is always the same."""
    chance = random.Random(20)
    rows = [line.split(",") for line in master.made().decode().splitlines()[1:]]
    shares = [row for row in rows if row[9] == "EQ" and row[3] and row[3] != row[2]]
    options = [row for row in rows if row[9] in ("CE", "PE")]
    indices = ["NIFTY", "BANKNIFTY", "FINNIFTY", "SENSEX", "CRUDEOIL", "USDINR"]

    def share() -> list[str]:
        return chance.choice(shares)

    def begun(text: str, least: int, most: int) -> str:
        return text[: chance.randint(least, most)]

    def terms(row: list[str]) -> str:
        return f"{row[3]} {row[6].removesuffix('.0')} {row[9]}".lower()

    def misspelt(text: str) -> str:
        place = chance.randrange(1, len(text) - 1)
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]

    typed = [
        *(share()[2] for _ in range(30)),
        *(chance.choice(options)[2] for _ in range(30)),
        *(begun(share()[2].lower(), 2, 7) for _ in range(50)),
        *(terms(chance.choice(options)) for _ in range(50)),
        *(f"{terms(chance.choice(options))} {chance.choice(_MONTHS)}" for _ in range(15)),
        *(f"{chance.choice(options)[3]} {chance.choice(_MONTHS)} fut".lower() for _ in range(15)),
        *(begun(chance.choice(options)[2], 8, 14) for _ in range(20)),
        *(" ".join(share()[3].lower().split()[:2]) for _ in range(30)),
        *(chance.choice(share()[3].split()).lower() for _ in range(10)),
        *(misspelt(share()[2].lower()) for _ in range(15)),
        *("abcdefghijnrstw"),
        *(name.lower() for name in indices),
        *("nifty bank", "nifty 50", "nifty ce", "nifty put", "NIFTY26", "BANKNIFTY26", "nifty nov", "nifty dec fut"),
        *("25000 ce", "50000", "no such thing", "m&m", "sdl 2032", "limited"),
    ]
    chance.shuffle(typed)
    return typed


async def prepare(target: Target) -> None:
    """Both brokers' files, loaded and vacuumed."""
    from core.trading import instruments

    async with master.connected(target) as connection:
        await master.truncate(connection)
        async with panda.opened_manager(target) as manager:
            for source, data in (("kite", master.made()), ("second", _shifted(master.made()))):
                await instruments.load(manager, data, source=source, trading_date=master.DAY)
        await connection.execute("VACUUM (ANALYZE) instruments")
        expect(await connection.fetchval("SELECT count(*) FROM instruments WHERE is_active"), ROWS)


def _shifted(data: bytes) -> bytes:
    header, *rows = data.splitlines(keepends=True)
    fields = (row.partition(b",") for row in rows)
    return header + b"".join(b"%d,%s" % (int(token) + _SECOND, rest) for token, _, rest in fields)


@asynccontextmanager
async def _panda(target: Target) -> AsyncGenerator[Searcher]:
    from core.trading import instruments

    async with panda.opened_manager(target) as manager:

        async def find(line: str) -> int:
            async with manager.get_session(read_only=True) as session:
                return len(await instruments.search(session, line, limit=_MOST))

        yield find


@asynccontextmanager
async def _asyncpg(target: Target, *, sql: str, pattern: str) -> AsyncGenerator[Searcher]:
    async with master.connected(target) as connection:

        async def find(line: str) -> int:
            text = line.upper().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return len(await connection.fetch(sql, pattern.format(text)))

        yield find


@asynccontextmanager
async def _list(target: Target) -> AsyncGenerator[Searcher]:
    async with master.connected(target) as connection:
        rows = await connection.fetch(f"SELECT {_COLUMNS} FROM instruments WHERE is_active ORDER BY trading_symbol")
    known = [(row["trading_symbol"].upper(), (row["name"] or "").upper(), row) for row in rows]

    async def find(line: str) -> int:
        text = line.upper()
        return len(list(islice((row for symbol, name, row in known if text in symbol or text in name), _MOST)))

    yield find


SEARCHERS: dict[str, Callable[[Target], AbstractAsyncContextManager[Searcher]]] = {
    LIMIT: partial(_asyncpg, sql=_PREFIX, pattern="{}"),
    PANDA: _panda,
    "a list in memory": _list,
    _LIKE: partial(_asyncpg, sql=_ANYWHERE, pattern="%{}%"),
}


@asynccontextmanager
async def _unit(target: Target, *, name: str) -> AsyncGenerator[Unit]:
    async with SEARCHERS[name](target) as find:
        asked = cycle(lines())

        async def unit() -> None:
            expect(0 <= await find(next(asked)) <= _MOST, True)

        yield unit


WORK = Work(
    name="search",
    title=f"find what somebody types among {ROWS:,} instruments",
    entrants=tuple(Entrant(name, partial(_unit, name=name)) for name in SEARCHERS),
    limit=LIMIT,
    goals=(Goal(PANDA, _LIKE, at_most=0.1), Goal(PANDA, LIMIT)),
    prepare=prepare,
    units=30,
    runs=7,
)
