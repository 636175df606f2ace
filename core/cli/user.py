"""`panda user ...`: accounts, and what happened to them."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import REFUSED, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import moment
from core.cli._portfolio_read import ZONE, Zone, clock_of
from core.cli._user_events import events, prune_events, shown
from core.cli._user_password import BothFromStdin, FromStdin, new_password, old_and_new

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.connection import DatabaseManager
    from core.database.models import User

__all__ = ["register"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="However it is typed.")]
Actor = Annotated[str | None, typer.Option("--actor", help="Who does it, for the record; else you.")]
ActiveOnly = Annotated[bool, typer.Option("--active", help="Those who may log in alone.")]
KeepSessions = Annotated[bool, typer.Option("--keep-sessions", help="Do not end the trading sessions.")]

_HERE = "command line"  # as the source of a login: strangers' failures do not hold up who has been here before
_HELP = "Accounts: passwords, disable, unlock, the record of it all."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    verbs: dict[str, Callable[..., int | None]] = {"register": add, "list": list_, "show": show, "passwd": passwd}
    verbs |= {"reset": reset, "disable": disable, "enable": enable, "unlock": unlock}
    verbs |= {"events": events, "prune-events": prune_events}
    for name, function in verbs.items():
        group.command(name)(command(function))
    app.add_typer(group, name="user")


def add(out: Output, name: Name, *, password_stdin: FromStdin = False, actor: Actor = None) -> None:
    """Add a user. The password is asked for, twice.

    The name is kept in one form: letters in lower case, full-width and the like made plain. Exit code 6 if it is taken.
    """
    from core.database.errors import UniqueViolation
    from core.trading import accounts

    password, by = new_password("Password", from_stdin=password_stdin), _actor(actor)

    async def work(manager: "DatabaseManager") -> "User":
        async with manager.transaction() as session:
            made = await accounts.register(session, name, password, actor=by)
            await session.refresh(made)  # what the server has added
            return made

    try:
        made = _run(out, work)
    except UniqueViolation:
        raise CommandError(
            f"there is a user {name!r} already", hint="`panda user list` shows those there are.", code=REFUSED
        ) from None
    _print(out, made, "registered")


def list_(out: Output, *, active: ActiveOnly = False, zone: Zone = ZONE) -> None:
    """List the users."""
    from core.cli._database import read
    from core.trading import accounts

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "Sequence[User]":
        return await accounts.listing(session, active_only=active)

    found = read(out, work)
    out.data({"users": [_json(item) for item in found]})
    if not found:
        out.note("there are no users" + (" who may log in" if active else " yet"))
        return
    rows = [
        (
            item.username,
            str(item.id),
            "active" if item.is_active else "disabled",
            f"{item.created_at.astimezone(clock):%Y-%m-%d %H:%M}",
        )
        for item in found
    ]
    out.table(rows, columns=("user", "id", "state", f"since ({clock.key})"))


def show(out: Output, name: Name, *, zone: Zone = ZONE) -> None:
    """Show a user, the last login and whether logins wait.

    Where the user has logged in before they do not wait for the failures of others. Exit code 6 if there is none of that name.
    """
    from core.cli._database import read
    from core.trading import accounts

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "tuple[User, datetime | None, int, float]":
        from sqlalchemy import func, select

        from core.database.models import TradingSession

        found = await accounts.find(session, name)
        logins = await accounts.events(session, user=found.id, kinds=["login"], limit=1)
        mine = select(func.count()).where(TradingSession.user_id == found.id, TradingSession.is_active)
        wait = await accounts.waits(session, name)
        return found, logins[0].occurred_at if logins else None, await session.scalar(mine) or 0, wait

    found, last, sessions, wait = _named(name, lambda: read(out, work))
    out.data({**_json(found), "last_login": last, "active_sessions": sessions, "waits_seconds": round(wait, 3)})
    rows = [
        ("user", found.username),
        ("id", str(found.id)),
        ("state", "active" if found.is_active else "disabled"),
        ("since", moment(found.created_at.replace(microsecond=0), clock)),
        ("last login", moment(last.replace(microsecond=0), clock) if last else "none on record"),
        ("trading sessions", str(sessions)),
        ("logins wait", f"{wait:.0f} s, but from where the user has logged in before" if wait else "no"),
    ]
    out.table(rows)


def passwd(
    out: Output, name: Name, *, password_stdin: BothFromStdin = False, keep_sessions: KeepSessions = False
) -> None:
    """Change a password by one who knows it. The trading sessions end.

    Exit code 6 if the name or the password is wrong, 1 while logins have to wait for others that failed.
    """
    from core.trading import accounts

    old, new = old_and_new(from_stdin=password_stdin)

    async def work(manager: "DatabaseManager") -> "User":
        return await accounts.change_password(manager, name, old, new, source=_HERE, keep_sessions=keep_sessions)

    try:
        found = _run(out, work)
    except accounts.InvalidCredentials as error:
        raise CommandError(error.message, hint="`panda user reset` sets one anew.", code=REFUSED) from None
    _print(out, found, "the password is changed")


def reset(out: Output, name: Name, *, password_stdin: FromStdin = False, actor: Actor = None) -> None:
    """Set a new password without the old one. The trading sessions end, failed logins are forgotten."""
    from core.trading import accounts

    password = new_password("New password", from_stdin=password_stdin)
    by = _actor(actor)
    found = _change(out, name, lambda manager: accounts.set_password(manager, name, password, actor=by))
    _print(out, found, "the password is reset")


def disable(out: Output, name: Name, *, actor: Actor = None) -> None:
    """Let a user log in no more, and end the trading sessions."""
    from core.trading import accounts

    by = _actor(actor)
    _print(out, _change(out, name, lambda manager: accounts.disable(manager, name, actor=by)), "disabled")


def enable(out: Output, name: Name, *, actor: Actor = None) -> None:
    """Let a disabled user log in again."""
    from core.trading import accounts

    by = _actor(actor)
    _print(out, _change(out, name, lambda manager: accounts.enable(manager, name, actor=by)), "enabled")


def unlock(out: Output, name: Name, *, actor: Actor = None) -> None:
    """Forget the failed logins with a user's name.

    So the next one need not wait, wherever it comes from.
    """
    from core.trading import accounts

    by = _actor(actor)
    _print(out, _change(out, name, lambda manager: accounts.unlock(manager, name, actor=by)), "unlocked")


def _actor(given: str | None) -> str:
    """Who runs this, as the system has it."""
    if given is not None:
        return given
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return "panda"


def _run(out: Output, work: "Callable[[DatabaseManager], Awaitable[User]]") -> "User":
    from core.cli._database import connected, run, settings_in_force

    async def working() -> "User":
        async with connected(settings_in_force(), out, verify=True) as manager:
            return await work(manager)

    return run(working())


def _change(out: Output, name: str, work: "Callable[[DatabaseManager], Awaitable[User]]") -> "User":
    return _named(name, lambda: _run(out, work))


def _named(name: str, work: Callable[[], Any]) -> Any:
    """With the name in the error, which the room does not repeat."""
    from core.trading.accounts import UserNotFound

    try:
        return work()
    except UserNotFound as error:
        raise CommandError(f"there is no user {name!r}", hint=error.hint, code=REFUSED) from None


def _print(out: Output, user: "User", what: str) -> None:
    out.data(_json(user))
    out.line(f"{shown(user.username)}: {what}")


def _json(user: "User") -> dict[str, Any]:
    from core.database.records import UserRead

    return UserRead.model_validate(user).model_dump(mode="json")
