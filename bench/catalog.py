"""Every work that `python -m bench` knows, in the order in which they run."""

from bench.measure import Work
from bench.works import (
    bulk_snapshots,
    connect,
    durable_row,
    durable_row_1,
    equity_curve,
    frame,
    latest,
    load,
    lookup,
    monitoring,
    reload,
    reload_1,
    search,
    session,
    session_64,
    session_broker,
)

__all__ = ["WORKS", "chosen"]

WORKS: tuple[Work, ...] = (
    session.WORK,
    session_64.WORK,
    session_broker.WORK,
    lookup.WORK,
    load.WORK,
    reload.WORK,
    reload_1.WORK,
    frame.WORK,
    durable_row.WORK,
    durable_row_1.WORK,
    bulk_snapshots.WORK,
    search.WORK,
    latest.WORK,
    equity_curve.WORK,
    monitoring.WORK,
    connect.WORK,
)


def chosen(names: str) -> tuple[Work, ...]:
    """The works of a comma-separated list, in the list's order; all when it is empty. ValueError names the unknown."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {work.name: work for work in WORKS}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"No work named {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) or WORKS
