"""A broker's file once more, when all of its 100,000 instruments are stored as it says.

What it is compared with is the upsert as everybody writes it: COPY the file into a temporary table, INSERT from there with ON
CONFLICT DO UPDATE of every column. "WHERE distinct" spares rows that are equal, and locks them all the same. "A known file" is
byte for byte the last one loaded; the files of the others say the same in different bytes each time. After each sample the
table is vacuumed, which nobody's clock sees.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from typing import Any

from bench import master, panda
from bench.measure import Entrant, Goal, SelfTimed, Work, expect
from bench.server import Target

__all__ = ["DISTINCT", "PANDA", "UPSERT", "WORK", "files_of", "panda_again", "prepare", "upsert"]

UPSERT = "staged upsert"
DISTINCT = "the same, WHERE distinct"
PANDA = "Alpha Panda"
KNOWN = "Alpha Panda, a known file"
_MOST_WAL = 500_000  # bytes, for a file of which nothing is new

_SET = [column for column in master.COLUMNS if column not in ("instrument_token", "valid_from")]
_ALL = f"{master.FROM_STAGED} ON CONFLICT (instrument_token) DO UPDATE SET " + ", ".join(
    f"{column} = excluded.{column}" for column in (*_SET, "valid_from")
)
_WHERE = (
    f" WHERE ({', '.join(f'instruments.{column}' for column in _SET)})"
    f" IS DISTINCT FROM ({', '.join(f'excluded.{column}' for column in _SET)})"
)


def files_of(changed: bool) -> Sequence[bytes]:
    """Two files that take turns: they say the same, or else a hundredth of their rows differs."""
    data = master.made()
    return data, master.one_in_a_hundred(data) if changed else master.respelt(data)


async def prepare(target: Target) -> None:
    """The master as the first file has it."""
    async with master.connected(target) as connection:
        await master.truncate(connection)
        async with panda.opened_manager(target) as manager:
            expect((await master.load(manager, master.made())).added, master.ROWS)
        await connection.execute("VACUUM (ANALYZE) instruments")


@asynccontextmanager
async def upsert(target: Target, *, changed: bool, spare: bool) -> AsyncGenerator[SelfTimed]:
    """The rivals' way; `spare` leaves equal rows alone."""
    files = cycle(files_of(changed))
    statement = _ALL + _WHERE if spare else _ALL
    async with master.connected(target) as connection:

        async def sample(units: int) -> float:
            taken = 0.0
            for _ in range(units):
                data = next(files)
                start = time.perf_counter()
                async with connection.transaction():
                    await master.stage(connection, data)
                    await connection.execute(statement)
                taken += time.perf_counter() - start
                await _tidied(connection)
            return taken

        yield SelfTimed(sample)


@asynccontextmanager
async def panda_again(target: Target, *, changed: bool) -> AsyncGenerator[SelfTimed]:
    """Alpha Panda's way. A file of which nothing is new writes next to nothing: AssertionError if it does."""
    files = files_of(changed)
    async with master.connected(target) as connection, panda.opened_manager(target) as manager:

        async def sample(units: int) -> float:
            taken = 0.0
            await master.load(manager, files[1])  # where the others have left it, untimed
            await _tidied(connection)
            for turn in range(units):
                before = await connection.fetchval("SELECT pg_current_wal_lsn()")
                start = time.perf_counter()
                report = await master.load(manager, files[turn % 2])
                taken += time.perf_counter() - start
                wal = await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before)
                expect((report.known, report.changed), (False, master.ROWS // 100 if changed else 0))
                expect(changed or wal < _MOST_WAL, True)
                await _tidied(connection)
            return taken

        yield SelfTimed(sample)


@asynccontextmanager
async def _known(target: Target) -> AsyncGenerator[SelfTimed]:
    data = master.made()
    async with panda.opened_manager(target) as manager:

        async def sample(units: int) -> float:
            await master.load(manager, data)
            start = time.perf_counter()
            for _ in range(units):
                report = await master.load(manager, data)
                expect((report.known, report.unchanged), (True, master.ROWS))
            return time.perf_counter() - start

        yield SelfTimed(sample)


async def _tidied(connection: Any) -> None:
    await master.check(connection)
    await connection.execute("VACUUM (ANALYZE) instruments")


WORK = Work(
    name="reload-0",
    title=f"the same {master.ROWS:,} instruments again",
    entrants=(
        Entrant(UPSERT, partial(upsert, changed=False, spare=False)),
        Entrant(DISTINCT, partial(upsert, changed=False, spare=True)),
        Entrant(PANDA, partial(panda_again, changed=False)),
        Entrant(KNOWN, _known),
    ),
    limit=UPSERT,
    goals=(Goal(PANDA, UPSERT, at_most=0.2), Goal(KNOWN, UPSERT, at_most=0.02)),
    prepare=prepare,
    units=1,
    runs=7,
)
