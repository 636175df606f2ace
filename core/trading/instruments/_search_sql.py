"""The statement of a search: a union of the ways to find something that apply, each held to a few rows by an index.

Dead contracts pile up over the years, so that nothing walks through them: what is active has its own place in each index, and
a contract is found by stepping from one expiry of its underlying to the next.

To plan all of it takes longer than to run it. So the planner is shown no values: each stands in a sub-select of its own, by
which a plan made for one search costs as much as the one made for all, and the server keeps the latter from the sixth time on.
"""

import re

from core.database.models import INSTRUMENT_WORDS, Instrument
from core.trading.instruments._shape import Shape

_SEEN = 500
"""Options that are looked at by their symbol; where more fit, they are found by the expiries of the underlying."""
_NAMES_SEEN = 200
"""Of those that have the words; where more fit, any of them."""
_UNDERLYINGS = 8
"""How many of those that begin with the same letters are followed."""
_ALL_UNDERLYINGS = 1_000
"""How many are asked for a strike and a side where no underlying is named."""
_NEAREST = 2
"""How many expiries of each are then looked at."""
_VALUE = re.compile(r"(?<!:):[a-z_0-9]+")
_COLUMNS = ", ".join(f"i.{column.name}" for column in Instrument.__table__.columns)

_BY_TOKEN = "(SELECT i.instrument_token FROM instruments i WHERE i.instrument_token = :token {filters})"  # noqa: S105

_BY_SYMBOL = """(
    SELECT i.instrument_token FROM instruments i
    WHERE i.is_active = {state} AND i.instrument_type = '{kind}' AND i.instrument_type <> 'OPT'
        AND upper(i.trading_symbol) >= :{name}_from AND upper(i.trading_symbol) < :{name}_to {filters}
    ORDER BY upper(i.trading_symbol) LIMIT {limit}
)"""

# Options by symbol: all there are, if they are few.
_NEAR = f"""near AS MATERIALIZED (
    SELECT i.* FROM instruments i WHERE i.trading_symbol >= :squeezed_from AND i.trading_symbol < :squeezed_to
    ORDER BY i.trading_symbol LIMIT {_SEEN + 1}
)"""  # noqa: S608
_BY_OPTION = """(
    SELECT i.instrument_token FROM near i WHERE i.instrument_type = 'OPT' AND i.is_active = {state} {filters}
    ORDER BY i.expiry {order}, i.strike, i.trading_symbol LIMIT {limit}
)"""

_BY_WORDS = f"""(
    SELECT i.instrument_token FROM instruments i
    WHERE i.instrument_type <> 'OPT' AND i.is_active = {{state}} AND {INSTRUMENT_WORDS} @@ CAST(:words AS tsquery)
        {{filters}} AND {{unless}}
    LIMIT {_NAMES_SEEN}
)"""  # noqa: S608

_NAMES = """names(underlying) AS (
    (SELECT i.underlying FROM instruments i WHERE {first} ORDER BY i.underlying LIMIT 1)
    UNION ALL
    SELECT (
        SELECT i.underlying FROM instruments i WHERE i.underlying > n.underlying {next} ORDER BY i.underlying LIMIT 1
    ) FROM names n WHERE n.underlying IS NOT NULL
), holders AS (SELECT underlying FROM names WHERE underlying IS NOT NULL LIMIT {most})"""
_BEGINNING_SO = _NAMES.format(
    first="i.underlying >= :name_from AND i.underlying < :name_to",
    next="AND i.underlying < :name_to",
    most=_UNDERLYINGS,
)
_ANYBODY = _NAMES.format(first="i.underlying IS NOT NULL", next="", most=_ALL_UNDERLYINGS)
_GIVEN = 'holders AS (SELECT CAST(:underlying AS text) COLLATE "C" AS underlying)'
_HOLDERS = 'beginnings AS (SELECT unnest(CAST(:beginnings AS text[])) COLLATE "C" AS underlying)'

_UNLESS = "(SELECT count(*) FROM begun) < {limit}"
"""Unless shares and indices fill the result: they come before all that is found by other means than the symbol."""
_IF_MANY = f"WHERE (SELECT count(*) FROM near) > {_SEEN}"  # noqa: S608

_BY_CONTRACT = """(
    SELECT found.instrument_token FROM {holders} n CROSS JOIN LATERAL (
        SELECT i.instrument_token FROM (
            WITH RECURSIVE days(expiry) AS (
                (
                    SELECT f.expiry FROM instruments f
                    WHERE f.underlying = n.underlying AND f.is_active = {state} AND f.expiry IS NOT NULL
                    ORDER BY f.expiry {order} LIMIT 1
                )
                UNION ALL
                SELECT (
                    SELECT f.expiry FROM instruments f
                    WHERE f.underlying = n.underlying AND f.is_active = {state} AND f.expiry {beyond} d.expiry
                    ORDER BY f.expiry {order} LIMIT 1
                ) FROM days d WHERE d.expiry IS NOT NULL
            )
            SELECT d.expiry FROM days d WHERE d.expiry IS NOT NULL {days}
        ) day CROSS JOIN LATERAL (
            SELECT i.instrument_token FROM instruments i
            WHERE i.underlying = n.underlying AND i.is_active = {state} AND i.expiry = day.expiry {terms} {filters}
            ORDER BY i.strike LIMIT {limit}
        ) i LIMIT {limit}
    ) found {gate}
)"""

_RANKED = """
    {ctes}
    SELECT {columns} FROM (SELECT DISTINCT u.instrument_token FROM ({union}) u) c
    JOIN instruments i ON i.instrument_token = c.instrument_token
    ORDER BY
        CASE
            WHEN upper(i.trading_symbol) IN (:text, :squeezed) {token} THEN 0
            WHEN starts_with(upper(i.trading_symbol), :text) OR starts_with(upper(i.trading_symbol), :squeezed) THEN 1
            ELSE 2
        END,
        i.is_active DESC,
        array_position(ARRAY['EQ', 'IDX', 'FUT', 'OPT'], i.instrument_type),
        i.underlying IS DISTINCT FROM :name,
        starts_with(upper(i.name), :text) IS NOT TRUE,
        CASE WHEN i.is_active THEN i.expiry END,
        i.expiry DESC,
        i.strike, i.trading_symbol, i.exchange, i.source, i.instrument_token
    LIMIT {limit}
"""


def sql_of(shape: Shape) -> str:
    """The statement; it names its parameters."""
    work = _Statement(shape)
    work.add_token()
    work.add_symbols()
    work.add_words()
    work.add_contracts()
    return work.finish()


def parameters_of(sql: str) -> tuple[str, ...]:
    """The names in a statement, each once."""
    return tuple(dict.fromkeys(name[1:] for name in _VALUE.findall(sql)))


class _Statement:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.unless = "true"
        self.filters = "".join(f" AND {condition}" for condition in shape.filters)
        self.states = ("true",) if shape.active_only else ("true", "false")
        self.branches: list[str] = []
        self.ctes: list[str] = []

    def add_token(self) -> None:
        if self.shape.token:
            active = " AND i.is_active" if self.shape.active_only else ""
            self.branches.append(_BY_TOKEN.format(filters=self.filters + active))

    def add_symbols(self) -> None:
        begun: list[str] = []
        for name in ("text", "squeezed") if self.shape.blanks else ("text",):
            for kind in ("EQ", "IDX", "FUT"):
                if self.shape.wanted in (None, kind):
                    active, *past = self._in_states(_BY_SYMBOL, kind=kind, name=name)
                    (self.branches if kind == "FUT" else begun).append(active)
                    self.branches.extend(past)
        if begun:
            self.ctes.append(f"begun AS MATERIALIZED ({' UNION ALL '.join(begun)})")
            self.branches.append("(SELECT b.instrument_token FROM begun b)")
            self.unless = _UNLESS.format(limit=self.shape.limit)
        if self.shape.wanted in (None, "OPT") and self.shape.digits:
            self.ctes.append(_NEAR)
            self._each_state(_BY_OPTION)
            if not (self.shape.name and self.shape.has_terms):
                self._add_many_options()

    def _add_many_options(self) -> None:
        """Where the symbols that fit are too many to be looked at: by the underlyings that the symbol can begin with."""
        self.ctes.append(_HOLDERS)
        terms = (
            "AND i.instrument_type = 'OPT' AND i.trading_symbol >= :squeezed_from AND i.trading_symbol < :squeezed_to"
        )
        self._each_state(_BY_CONTRACT, holders="beginnings", days="", terms=terms, gate=_IF_MANY)

    def add_words(self) -> None:
        if self.shape.words and not self.shape.option_type:
            self._each_state(_BY_WORDS, unless=self.unless)

    def add_contracts(self) -> None:
        shape = self.shape
        anybody = not (shape.given or shape.name)
        if shape.given == "other" or (anybody and not (shape.strike and shape.option_type)):
            return
        self.ctes.append(_GIVEN if shape.given else _ANYBODY if anybody else _BEGINNING_SO)
        terms = ""
        if shape.strike:
            terms += " AND i.strike = :strike"
        if shape.option_type:
            terms += " AND i.option_type = :side"
        if shape.kind is not None:
            terms += f" AND i.instrument_type = '{shape.kind}'"
            terms += " AND i.strike IS NULL" if shape.kind == "FUT" else ""
        days = self._days() + (f" LIMIT {_NEAREST}" if anybody else "")
        self._each_state(_BY_CONTRACT, holders="holders", days=days, terms=terms, gate=f"WHERE {self.unless}")

    def _days(self) -> str:
        conditions = " AND d.expiry = :day" if self.shape.expiry else ""
        if self.shape.month:
            conditions += " AND extract(month FROM d.expiry) = CAST(:month AS integer)"
        for place in range(self.shape.numbers):
            conditions += f" AND CAST(:number_{place} AS integer) IN (extract(day FROM d.expiry),"
            conditions += " extract(year FROM d.expiry), extract(year FROM d.expiry) - 2000)"
        return conditions

    def _each_state(self, branch: str, **parts: str) -> None:
        self.branches.extend(self._in_states(branch, **parts))

    def _in_states(self, branch: str, **parts: str) -> list[str]:
        """The branch for what is active and, if that is asked for, for what was."""
        made: list[str] = []
        for state in self.states:
            order, beyond = ("ASC", ">") if state == "true" else ("DESC", "<")
            common = {"state": state, "order": order, "beyond": beyond, "filters": self.filters}
            made.append(branch.format(**common, limit=self.shape.limit, **parts))
        return made

    def finish(self) -> str:
        sql = _RANKED.format(
            ctes=f"WITH RECURSIVE {', '.join(self.ctes)}" if self.ctes else "",
            columns=_COLUMNS,
            union=" UNION ALL ".join(self.branches),
            token="OR i.instrument_token = :token" if self.shape.token else "",
            limit=self.shape.limit,
        )
        return _VALUE.sub(r"(SELECT \g<0>)", sql)
