"""A look at a server drawn as lines: the same on a terminal, cut to its height, and in a pipe, whole."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from core.database.activity import (
    Activity,
    ApplicationUse,
    LockLine,
    Rates,
    Session,
    by_application,
    by_state,
    lock_tree,
    running,
)

_WIDE = 110  # columns from which a statement stands on the line of its session
_SHORT_STATES = {
    "idle in transaction": "idle tx",
    "idle in transaction (aborted)": "aborted",
    "fastpath function call": "active",
}
_STYLES = {"active": "green", "idle tx": "yellow", "aborted": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known at one moment."""

    place: str
    """Which database, without its password."""
    activity: Activity
    rates: Rates | None
    """None before the second look."""
    size: int | None
    trouble: str | None = None
    """Why the last look failed, and since when; the activity is then the one before."""


Item = list[Text]
"""Lines that are shown together or not at all."""


def frame(view: View, *, width: int, height: int | None) -> list[Text]:
    """The screen, every line at most `width` columns; at most `height` lines where that is given."""
    head = [_cut(line, width) for line in _head(view)]
    sections = [
        (title, items)
        for title, items in (
            _locks(view.activity, width),
            _statements(view.activity, width),
            _applications(view.activity, width),
        )
        if items
    ]
    lines = list(head)
    rooms = _rooms([sum(map(len, items)) for _, items in sections], height, used=len(head) + 2 * len(sections))
    for (title, items), room in zip(sections, rooms, strict=True):
        lines += [Text(""), _cut(title, width), *(_cut(line, width) for line in _fitting(items, room))]
    return lines if height is None else lines[:height]


def hidden_note(activity: Activity) -> str | None:
    """What a role without the right to look into others' sessions is told."""
    if not activity.hidden:
        return None
    role = activity.server.role.replace('"', '""')
    return f'{activity.hidden} sessions hide what they do from this role: GRANT pg_read_all_stats TO "{role}"'


def age(seconds: float | None) -> str:
    """In six columns at the most."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6_000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 360_000 else f"{seconds / 86_400:.0f} d"


def _head(view: View) -> list[Text]:
    activity, server = view.activity, view.activity.server
    states = by_state(activity.sessions)
    total = sum(states.values()) + 1
    parts = [f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: -item[1])]
    size = f"; database {_bytes(view.size)}" if view.size is not None else ""
    role = "standby" if server.standby else "primary"
    lines = [
        Text(f"{_clean(view.place)}  {activity.at:%Y-%m-%d %H:%M:%S} UTC", "bold"),
        Text(f"PostgreSQL {server.version.split()[0]} {role}, up {age(server.uptime)}{size}"),
        Text(f"connections {total} of {server.max_connections}: {', '.join([*parts, '1 this'])}"),
        Text(_traffic(view)),
    ]
    lines += [Text(text) for text in _replication(activity)]
    if view.trouble is not None:
        lines.insert(1, Text(_clean(view.trouble), "bold red"))
    if note := hidden_note(activity):
        lines.append(Text(_clean(note), "yellow"))
    return lines


def _traffic(view: View) -> str:
    rates, server = view.rates, view.activity.server
    commits, rollbacks = (rates.commits, rates.rollbacks) if rates is not None else (None, None)
    share = rates.hit_share if rates is not None else None
    hits = f"{share:.1%}" if share is not None else "-"
    traffic = f"commits {_per_second(commits)}, rollbacks {_per_second(rollbacks)}"
    return f"{traffic}, cache hits {hits}, deadlocks {server.deadlocks}"


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}/s"


def _replication(activity: Activity) -> list[str]:
    lines: list[str] = []
    if activity.server.lag is not None:
        lines.append(f"behind the primary by {age(activity.server.lag)}")
    for replica in activity.replicas:
        behind = f"{_bytes(replica.lag_bytes)}, {age(replica.lag)}" if replica.lag_bytes is not None else "unknown"
        name = _clean(replica.application or replica.client or "-")
        lines.append(f"replica {name} {replica.state or 'hidden'}, behind by {behind}")
    return lines


def _applications(activity: Activity, width: int) -> tuple[Text, list[Item]]:
    room = min(max(10, width - 63), 30)
    title = f"{'APPLICATION':{room}} {'USER':10} {'CLIENT':10} {'CONN':>5} {'ACTIVE':>6} {'IDLE':>5} {'IDLE TX':>7} {'OLDEST':>7}"

    def line(use: ApplicationUse) -> Text:
        places = ((use.application or "-", room), (use.user or "-", 10), (use.client or "-", 10))
        names = " ".join(_fixed(text, size) for text, size in places)
        known = use.connections - use.other or not use.other
        figures = (use.active, use.idle, use.idle_in_transaction) if known else ("-", "-", "-")
        counts = f"{use.connections:5} {figures[0]:>6} {figures[1]:>5} {figures[2]:>7} {age(use.oldest_transaction):>7}"
        return Text(f"{names} {counts}", "yellow" if use.idle_in_transaction else "")

    return Text(title, "bold"), [[line(use)] for use in by_application(activity.sessions)]


def _statements(activity: Activity, width: int) -> tuple[Text, list[Item]]:
    wide = width >= _WIDE
    other = any(session.database not in (None, activity.server.database) for session in activity.sessions)
    title = f"{'PID':>7} {'USER':10} {'APPLICATION':14} {'STATE':7} {'AGE':>7} {'TX':>7} {'WAITS FOR':21}"
    items: list[Item] = []
    for session in running(activity.sessions):
        state = _SHORT_STATES.get(session.state or "", session.state or "-")
        user = (
            f"{session.user or '-'}@{session.database}"
            if other and session.user
            else session.user or session.kind or "-"
        )
        own_age = session.statement_seconds if state == "active" else session.state_seconds
        row = (
            f"{session.pid:>7} {_fixed(user, 10)} {_fixed(session.application or '-', 14)} {_fixed(state, 7)}"
            f" {age(own_age):>7} {age(session.transaction_seconds):>7} {_fixed(session.wait or '-', 21)}"
        )
        text = _clean(session.statement or "")
        style = _STYLES.get(state, "")
        if wide:
            items.append([Text(f"{row} {text}", style)])
        else:
            items.append([Text(row, style), *([Text(f"        {text}")] if text else [])])
    return Text(f"{title} STATEMENT" if wide else title, "bold"), items


def _locks(activity: Activity, width: int) -> tuple[Text, list[Item]]:
    sessions = {session.pid: session for session in activity.sessions}
    items = [[_lock_line(line, sessions.get(line.pid))] for line in lock_tree(activity.waits)]
    return Text("WHO BLOCKS WHOM", "bold"), items


def _lock_line(line: LockLine, session: Session | None) -> Text:
    if line.pid == 0:
        who = "a prepared transaction"
    elif session is None:
        who = f"{line.pid} (gone or hidden)"
    else:
        who = " ".join(filter(None, (str(line.pid), session.user, session.application)))
    indent = "  " * (line.depth - 1) + "└ " if line.depth else ""
    if line.wait is None:
        state = (
            f": {session.state}, transaction {age(session.transaction_seconds)}" if session and session.state else ""
        )
        return Text(_clean(f"{who}{state}"), "red")
    also = f", behind {line.also_behind} more" if line.also_behind > 0 else ""
    circle = " - in a circle" if line.circular else ""
    what = f"waits {age(line.wait.seconds)} for {line.wait.target} ({line.wait.mode}){also}{circle}"
    return Text(_clean(f"{indent}{who} {what}"), "red" if line.circular else "")


def _rooms(wanted: Sequence[int], height: int | None, *, used: int) -> list[int]:
    """Lines for each section: what it wants while there is room, else a fair share, spare lines to the next."""
    if height is None or sum(wanted) + used <= height:
        return list(wanted)
    left, rooms = max(height - used, 0), [0] * len(wanted)
    for place, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        rooms[index] = min(wanted[index], left // (len(wanted) - place))
        left -= rooms[index]
    return rooms


def _fitting(items: Sequence[Item], room: int) -> list[Text]:
    """As many items as fit, and in the last line how many do not."""
    if sum(map(len, items)) <= room:
        return [line for item in items for line in item]
    lines: list[Text] = []
    for shown, item in enumerate(items):
        if len(lines) + len(item) > room - 1:
            return [*lines, Text(f"... and {len(items) - shown} more", "dim")][:room]
        lines += item
    return lines


def _fixed(text: str, size: int) -> str:
    text = _clean(text)
    return set_cell_size(text, size) if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


def _cut(line: Text, width: int) -> Text:
    if line.cell_len > width:
        return Text(_fixed(line.plain, width), line.style)
    return Text(line.plain.rstrip(), line.style)


def _clean(text: str) -> str:
    """Names come from others: nothing in them may steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:,.1f} TB"
