"""What follows from one or two looks at a server: use by application, rates, the tree of locks."""

from collections import deque
from collections.abc import Iterable, Sequence

from core.database.activity._values import Activity, ApplicationUse, LockLine, LockWait, Rates, Session

_IN_TRANSACTION = ("idle in transaction", "idle in transaction (aborted)")


def by_application(sessions: Iterable[Session]) -> tuple[ApplicationUse, ...]:
    """Client connections counted by application, user and client, the most connections first."""
    groups: dict[tuple[str, str | None, str | None], list[Session]] = {}
    for session in sessions:
        if session.is_client:
            groups.setdefault((session.application, session.user, session.client), []).append(session)
    found = [_use(*key, members) for key, members in groups.items()]
    return tuple(sorted(found, key=lambda use: (-use.connections, use.application, use.user or "")))


def by_state(sessions: Iterable[Session]) -> dict[str, int]:
    """Client connections counted by state; `hidden` where the asking role may not see it."""
    counts: dict[str, int] = {}
    for session in sessions:
        if session.is_client:
            state = session.state or "hidden"
            counts[state] = counts.get(state, 0) + 1
    return dict(sorted(counts.items()))


def running(sessions: Iterable[Session]) -> tuple[Session, ...]:
    """Those in a statement or an open transaction, slowest first."""
    busy = [
        session
        for session in sessions
        if session.state not in (None, "idle", "disabled") and session.kind in ("client backend", "autovacuum worker")
    ]
    return tuple(sorted(busy, key=lambda session: (-session.seconds, session.pid)))


def rates(earlier: Activity, later: Activity, *, own: int = 0) -> Rates:
    """What happened between two looks at one database; `own` commits of the looks themselves are left out."""
    seconds = (later.at - earlier.at).total_seconds()
    before, after = earlier.server, later.server
    commits, rollbacks = after.commits - before.commits, after.rollbacks - before.rollbacks
    hits, reads = after.blocks_hit - before.blocks_hit, after.blocks_read - before.blocks_read
    if seconds <= 0 or min(commits, rollbacks, hits, reads) < 0:  # a reset, a restart or another server
        return Rates(seconds=max(seconds, 0.0), commits=None, rollbacks=None, hit_share=hit_share(later))
    return Rates(
        seconds=seconds,
        commits=max(commits - own, 0) / seconds,
        rollbacks=rollbacks / seconds,
        hit_share=hits / (hits + reads) if hits + reads else None,
    )


def hit_share(activity: Activity) -> float | None:
    """Of all blocks wanted since the counters began, those found in the server's memory; 0 to 1."""
    server = activity.server
    total = server.blocks_hit + server.blocks_read
    return server.blocks_hit / total if total else None


def lock_tree(waits: Sequence[LockWait]) -> tuple[LockLine, ...]:
    """Who blocks whom, each session once: below those it waits for, as near to the one that waits for nobody as can be.

    Circles, which the server ends after its deadlock_timeout, begin with the one that has waited longest.
    """
    waiting = {wait.pid: wait for wait in waits}
    behind: dict[int, list[int]] = {}
    for wait in sorted(waits, key=lambda wait: (-(wait.seconds or 0.0), wait.pid)):
        for blocker in wait.blocked_by:
            behind.setdefault(blocker, []).append(wait.pid)
    children: dict[int, list[int]] = {}
    placed: set[int] = set()
    roots = sorted(pid for pid in behind if pid not in waiting)
    _place(roots, behind, children, placed)
    circular: list[int] = []
    lost = [pid for pid, wait in waiting.items() if not wait.blocked_by and pid not in placed]
    for pid in [*lost, *sorted(waiting, key=lambda pid: (-(waiting[pid].seconds or 0.0), pid))]:
        if pid not in placed:
            circular += [pid] if waiting[pid].blocked_by else []
            roots.append(pid)
            _place([pid], behind, children, placed)
    return tuple(_lines(roots, children, waiting, set(circular)))


def _place(
    roots: Sequence[int], behind: dict[int, list[int]], children: dict[int, list[int]], placed: set[int]
) -> None:
    """Breadth first, so that each lands on the shortest way."""
    placed.update(roots)
    queue = deque(roots)
    while queue:
        pid = queue.popleft()
        for waiter in behind.get(pid, ()):
            if waiter not in placed:
                placed.add(waiter)
                children.setdefault(pid, []).append(waiter)
                queue.append(waiter)


def _lines(
    roots: Sequence[int], children: dict[int, list[int]], waiting: dict[int, LockWait], circular: set[int]
) -> list[LockLine]:
    lines: list[LockLine] = []
    stack = [(pid, 0) for pid in reversed(roots)]
    while stack:
        pid, depth = stack.pop()
        wait = waiting.get(pid)
        others = len(wait.blocked_by) - bool(depth) if wait else 0
        lines.append(LockLine(pid=pid, depth=depth, wait=wait, also_behind=others, circular=pid in circular))
        stack += [(child, depth + 1) for child in reversed(children.get(pid, []))]
    return lines


def _use(application: str, user: str | None, client: str | None, members: Sequence[Session]) -> ApplicationUse:
    states = [session.state for session in members]
    active, idle = states.count("active"), states.count("idle")
    open_idle = sum(states.count(state) for state in _IN_TRANSACTION)
    ages = [session.transaction_seconds for session in members if session.transaction_seconds is not None]
    return ApplicationUse(
        application=application,
        user=user,
        client=client,
        connections=len(members),
        active=active,
        idle=idle,
        idle_in_transaction=open_idle,
        other=len(members) - active - idle - open_idle,
        oldest_transaction=max(ages, default=None),
    )
