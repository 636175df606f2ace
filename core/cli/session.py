"""`panda session ...`: users' sessions with their brokers."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import REFUSED, USAGE, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import as_json, moment
from core.cli._portfolio_read import ZONE, Zone, clock_of, instant
from core.cli._session_watch import watch

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from sqlalchemy.ext.asyncio import AsyncSession

    from core.config.brokers import ExpiryPolicy
    from core.config.settings import Settings
    from core.database.encryption import KeyRing
    from core.trading.sessions import ExpiryReport, OpenedSession, SessionInfo

__all__ = ["register"]

Username = Annotated[str, typer.Argument(metavar="USER", help="The user's name.")]
Which = Annotated[str, typer.Argument(metavar="SESSION", help="Its public id; not the bearer.")]
Broker = Annotated[str, typer.Option("--broker", help="One of TRADING__BROKERS.")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="With this broker alone.")]
OfUser = Annotated[str | None, typer.Option("--user", metavar="NAME", help="Of this user alone.")]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="WHEN", help="Ends then; else by the broker's rule in TRADING__BROKERS."),
]
Credentials = Annotated[
    bool, typer.Option("--credentials", help="Ask for the broker's token; from stdin where that is no terminal.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="KEY=TEXT", help="A note in the open, never a secret; may be repeated."),
]
Everything = Annotated[bool, typer.Option("--all", help="Also those that are over.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")]
WarnBefore = Annotated[
    int, typer.Option("--warn-before", metavar="MINUTES", min=0, max=10_080, help="Tell so long before the end.")
]

_HELP = "Users' sessions with brokers: open, list, end, watch."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    verbs = {"open": open_, "list": list_, "show": show, "revoke": revoke, "revoke-all": revoke_all}
    verbs |= {"expire-due": expire_due, "watch": watch}
    for name, function in verbs.items():
        group.command(name)(command(function))
    app.add_typer(group, name="session")


def open_(
    out: Output,
    user: Username,
    *,
    broker: Broker,
    until: Until = None,
    credentials: Credentials = False,
    data: Data = None,
    zone: Zone = ZONE,
) -> None:
    """Open a session, and end the user's active one with that broker.

    The bearer, by which a client takes the session up again, is printed once and stored nowhere. Exit code 6 if there is
    no such user, or a disabled one.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import sessions

    settings, clock = settings_in_force(), clock_of(zone)
    policy = _policy(settings, broker)
    end = instant(until, clock) if until else None
    notes = _notes(data)
    secret, ring = _secret(settings) if credentials else (None, None)

    async def work() -> "OpenedSession":
        async with connected(settings, out, verify=True) as manager, manager.transaction() as session:
            user_id = await _user_id(session, user)
            try:
                return await sessions.open(
                    session,
                    user_id=user_id,
                    broker=broker,
                    policy=policy if end is None else None,
                    expires_at=end,
                    session_data=notes,
                    credentials=secret,
                    ring=ring,
                )
            except sessions.UserDisabled:
                raise CommandError(
                    f"{user} is disabled", hint="`panda user enable` lets them in.", code=REFUSED
                ) from None

    made = run(work())
    row = made.session
    fields = {"session_id": row.session_id, "bearer": made.bearer, "user_id": row.user_id, "broker": row.broker}
    out.data({**fields, "start_time": row.start_time, "expires_at": row.expires_at})
    ends = f"until {moment(row.expires_at, clock)} {clock.key}" if row.expires_at else "until it is ended"
    out.line(f"session  {row.session_id}")
    out.line(f"bearer   {made.bearer}")
    out.note(f"{user} is logged in with {broker} {ends}")
    out.note("the bearer is shown this once")


def list_(
    out: Output,
    *,
    user: OfUser = None,
    broker: OfBroker = None,
    everything: Everything = False,
    limit: Limit = 100,
    zone: Zone = ZONE,
) -> None:
    """List the sessions, the latest first."""
    from core.cli._database import read
    from core.trading import sessions

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "list[SessionInfo]":
        user_id = await _user_id(session, user) if user is not None else None
        return await sessions.find(session, user_id=user_id, broker=broker, active_only=not everything, limit=limit)

    found = read(out, work)
    out.data({"sessions": as_json(found)})
    if not found:
        out.note("there are no sessions" if everything else "there are no active sessions; --all lists what is over")
        return
    rows = [
        (item.session_id, item.username, item.broker, item.state, _short(item.end_time or item.expires_at, clock))
        for item in found
    ]
    out.table(rows, columns=("session", "user", "broker", "state", f"ends ({clock.key})"))
    if len(found) == limit:
        out.note(f"these are the latest {limit}; --limit shows more")


def show(out: Output, session: Which, *, zone: Zone = ZONE) -> None:
    """Show a session, without anything secret."""
    from core.cli._database import read
    from core.trading import sessions

    clock = clock_of(zone)

    async def work(database: "AsyncSession") -> "SessionInfo":
        found = await sessions.get(database, session)
        if found is None:
            raise _unknown(session)
        return found

    found = read(out, work)
    out.data(as_json(found))
    times = {name: moment(getattr(found, name), clock) or "-" for name in _TIMES}
    facts = {
        "session": found.session_id,
        "user": f"{found.username} ({found.user_id})",
        "broker": found.broker,
        "state": found.state,
        **{words: times[name] for name, words in _TIMES.items()},
        "credentials": "sealed" if found.has_credentials else "none",
        **{f"data {key}": str(value) for key, value in found.session_data.items()},
    }
    out.table(list(facts.items()))
    out.note(f"times of {clock.key}")


def revoke(out: Output, session: Which) -> int | None:
    """End a session and erase its credentials.

    Exit code 1 if it had ended before, 6 if there is none of that id.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import sessions

    async def work() -> bool:
        async with connected(settings_in_force(), out, verify=True) as manager, manager.transaction() as database:
            if await sessions.get(database, session) is None:
                raise _unknown(session)
            return await sessions.revoke(database, session_id=session)

    done = run(work())
    out.data({"session_id": session, "revoked": done})
    out.line(f"{session}: {'revoked' if done else 'had ended before'}")
    return None if done else 1


def revoke_all(out: Output, user: Username, *, broker: OfBroker = None) -> None:
    """End all sessions of a user."""
    from core.cli._database import connected, run, settings_in_force
    from core.trading import sessions

    async def work() -> int:
        async with connected(settings_in_force(), out, verify=True) as manager, manager.transaction() as session:
            return await sessions.revoke_all(session, await _user_id(session, user), broker=broker)

    count = run(work())
    out.data({"user": user, "broker": broker, "revoked": count})
    out.line(f"{count} {'session' if count == 1 else 'sessions'} of {user} revoked")


def expire_due(out: Output, *, warn_before: WarnBefore = 30) -> None:
    """End the sessions whose time has come, and tell of those that soon will.

    For a job each minute, where no application watches. Any number of processes may do it.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import sessions

    async def work() -> "ExpiryReport":
        async with connected(settings_in_force(), out, verify=True) as manager:
            return await sessions.expire_due(manager, warn_before=timedelta(minutes=warn_before))

    report = run(work())
    out.data({**as_json(report), "next_due": report.next_due})
    out.line(f"{len(report.expired)} expired, {len(report.warned)} told that they soon will")
    for item in report.brokers:
        end = f", the next ends {item.next_expiry:%Y-%m-%d %H:%M:%S} UTC" if item.next_expiry else ""
        out.line(f"{item.broker}: {item.active} active{end}")


_TIMES = {"start_time": "began", "expires_at": "expires", "end_time": "ended", "last_seen_at": "last seen"}


def _policy(settings: "Settings", broker: str) -> "ExpiryPolicy":
    policies = settings.trading.broker_policies
    if broker not in policies:
        raise CommandError(
            f"there is no broker {broker!r}",
            hint=f"TRADING__BROKERS knows {', '.join(sorted(policies))}.",
            code=REFUSED,
        )
    return policies[broker]


def _notes(given: list[str] | None) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"{text!r} is no note", hint="Write --data device=desk-4.", code=USAGE)
        if key in notes:
            raise CommandError(f"the note {key!r} is given twice", code=USAGE)
        notes[key] = value
    return notes


def _secret(settings: "Settings") -> "tuple[str, KeyRing]":
    """What the user types unseen, or what comes in by a pipe, less the end of its line; never an argument, which all can read."""
    import getpass
    import sys

    from core.cli._keys_ring import ring_of

    ring, secret = ring_of(settings), ""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
        pass
    elif sys.stdin.isatty():
        try:
            secret = getpass.getpass("Credentials (not shown): ")
        except (EOFError, KeyboardInterrupt) as end:
            print(file=sys.stderr)  # the line of the question is still open
            if isinstance(end, KeyboardInterrupt):
                raise
    else:
        secret = sys.stdin.read().rstrip("\r\n")
    if not secret:
        raise CommandError("no credentials were given", hint="Type them, or pipe them in: ... < token", code=USAGE)
    return secret, ring


async def _user_id(session: "AsyncSession", username: str) -> int:
    from sqlalchemy import select

    from core.database.models import User

    user_id = await session.scalar(select(User.id).where(User.username == username))
    if user_id is None:
        raise CommandError(f"there is no user {username!r}", hint="`panda user list` shows them.", code=REFUSED)
    return user_id


def _unknown(session: str) -> CommandError:
    hint = "`panda session list --all` shows them."
    if session.startswith("panda_session_"):
        return CommandError("that is a bearer, which belongs into no command", hint=hint, code=REFUSED)
    return CommandError(f"there is no session {session!r}", hint=hint, code=REFUSED)


def _short(at: datetime | None, clock: "ZoneInfo") -> str:
    return f"{at.astimezone(clock):%m-%d %H:%M:%S}" if at else "never"
