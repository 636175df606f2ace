"""Strategies and their changes as lines of text and as JSON."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from core.cli import _portfolio_print
from core.cli._output import Output

if TYPE_CHECKING:
    from core.database.models import Strategy, StrategyRevision
    from core.trading.strategies import FieldChange

_LONGEST = 60
"""Characters of a value that people are shown; JSON has it whole."""


def shown(text: str) -> str:
    """With what is no printable character escaped: a name must not turn or forge a line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def as_json(value: Any) -> Any:
    """Documents with every Decimal as text; of a change no `before` where something came, no `after` where it went."""
    from core.database.models import Strategy, StrategyRevision
    from core.trading.strategies import ABSENT, FieldChange

    if isinstance(value, FieldChange):
        sides = {"before": value.before, "after": value.after}
        return {"path": list(value.path)} | {name: side for name, side in sides.items() if side is not ABSENT}
    found = _portfolio_print.as_json(value)
    if isinstance(value, Strategy | StrategyRevision):
        found |= {name: getattr(value, name).root for name in ("config", "parameters")}
    return found


def change_lines(changes: "Iterable[FieldChange]") -> Iterator[str]:
    """`~ parameters.lookback: 20 -> 30`, `+ config.universe[3]: "E"`, `- ...`."""
    from core.trading.strategies import ABSENT

    for one in changes:
        if one.before is ABSENT:
            yield shown(f"+ {one.where}: {_value(one.after)}")
        elif one.after is ABSENT:
            yield shown(f"- {one.where}: {_value(one.before)}")
        else:
            yield shown(f"~ {one.where}: {_value(one.before)} -> {_value(one.after)}")


def print_strategy(
    out: Output, strategy: "Strategy", revision: "StrategyRevision | None", clock: ZoneInfo, *, past: bool
) -> None:
    """The strategy, or with `past` what it was at the revision."""
    from core.trading.strategies import StrategyDocument, write_documents

    row: Any = revision if past else strategy
    at = row.created_at if past else strategy.updated_at
    who = f" by {shown(revision.changed_by)}" if revision is not None and revision.changed_by else ""
    state = "active" if row.is_active else "disabled"
    out.line(f"{shown(row.strategy_id)}: {state}, version {row.version}{f' of {strategy.version}' if past else ''}")
    out.line(f"since {at.astimezone(clock):%Y-%m-%d %H:%M:%S} ({clock.key}){who}")
    if revision is not None and revision.note:
        out.line(f"note: {shown(revision.note)}")
    out.line()
    out.raw(write_documents([StrategyDocument.from_strategy(row)]).rstrip())


def named(count: int, noun: str) -> str:
    """`1 change`, `3 changes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _value(value: Any) -> str:
    from core.database.types import strict_json_dumps

    text = strict_json_dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
