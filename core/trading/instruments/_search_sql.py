"""The statement of a search: a union of the ways to find something that apply, each held to a few rows by an index.

Dead contracts pile up over the years, so that nothing walks through them: what is active has its own place in each index, and
a contract is found by stepping from one expiry of its underlying to the next.
"""

from typing import Any

from core.database.models import INSTRUMENT_WORDS, Instrument
from core.trading.instruments._query import Query, after

_SEEN = 500
"""Options that are looked at by their symbol; where more fit, they are found by the expiries of the underlying."""
_NAMES_SEEN = 200
"""Of those that have the words; where more fit, any of them."""
_UNDERLYINGS = 8
"""How many of those that begin with the same letters are followed."""
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

_NAMES = f"""names(underlying) AS (
    (
        SELECT i.underlying FROM instruments i WHERE i.underlying >= :name_from AND i.underlying < :name_to
        ORDER BY i.underlying LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT i.underlying FROM instruments i WHERE i.underlying > n.underlying AND i.underlying < :name_to
        ORDER BY i.underlying LIMIT 1
    ) FROM names n WHERE n.underlying IS NOT NULL
), holders AS (SELECT underlying FROM names WHERE underlying IS NOT NULL LIMIT {_UNDERLYINGS})"""  # noqa: S608
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


def statement(
    query: Query, filters: dict[str, tuple[str, Any]], *, active_only: bool, limit: int
) -> tuple[str, dict[str, Any]]:
    """SQL and its parameters. `filters` are conditions on `i` with the values that they name."""
    work = _Statement(query, filters, active_only=active_only, limit=limit)
    work.add_token()
    work.add_symbols()
    work.add_words()
    work.add_contracts()
    return work.finish()


class _Statement:
    def __init__(self, query: Query, filters: dict[str, tuple[str, Any]], *, active_only: bool, limit: int) -> None:
        self.query = query
        self.limit = limit
        self.unless = "true"
        self.given = {name: value for name, (_, value) in filters.items()}
        self.filters = "".join(f" AND {condition}" for condition, _ in filters.values())
        self.states = ("true",) if active_only else ("true", "false")
        self.branches: list[str] = []
        self.ctes: list[str] = []
        self.token = ""
        name = self.given.get("underlying") or query.name
        self.values: dict[str, Any] = {
            "text": query.text, "squeezed": query.squeezed, "name": name, **self.given,
        }  # fmt: skip

    def add_token(self) -> None:
        if self.query.text.isascii() and self.query.text.isdigit() and int(self.query.text) < 1 << 63:
            self.values["token"] = int(self.query.text)
            self.token = "OR i.instrument_token = :token"  # noqa: S105
            active = " AND i.is_active" if len(self.states) == 1 else ""
            self.branches.append(_BY_TOKEN.format(filters=self.filters + active))

    def add_symbols(self) -> None:
        names = ["text"] if self.query.text == self.query.squeezed else ["text", "squeezed"]
        wanted = self.given.get("instrument_type")
        begun: list[str] = []
        for name in names:
            self._range(name, self.values[name])
            for kind in ("EQ", "IDX", "FUT"):
                if wanted in (None, kind):
                    active, *past = self._in_states(_BY_SYMBOL, kind=kind, name=name)
                    (self.branches if kind == "FUT" else begun).append(active)
                    self.branches.extend(past)
        if begun:
            self.ctes.append(f"begun AS MATERIALIZED ({' UNION ALL '.join(begun)})")
            self.branches.append("(SELECT b.instrument_token FROM begun b)")
            self.unless = _UNLESS.format(limit=self.limit)
        if wanted in (None, "OPT") and any(character.isdigit() for character in self.query.squeezed):
            self._range("squeezed", self.query.squeezed)
            self.ctes.append(_NEAR)
            self._each_state(_BY_OPTION)
            if not (self.query.name and self.query.has_terms):
                self._add_many_options()

    def _add_many_options(self) -> None:
        """Where the symbols that fit are too many to be looked at: by the underlyings that the symbol can begin with."""
        symbol = self.query.squeezed
        self.values["beginnings"] = [symbol[:end] for end in range(1, min(len(symbol), 30) + 1)]
        self.ctes.append(_HOLDERS)
        terms = (
            "AND i.instrument_type = 'OPT' AND i.trading_symbol >= :squeezed_from AND i.trading_symbol < :squeezed_to"
        )
        self._each_state(_BY_CONTRACT, holders="beginnings", days="", terms=terms, gate=_IF_MANY)

    def add_words(self) -> None:
        if self.query.words and self.query.option_type is None:
            self.values["words"] = self.query.lexemes
            self._each_state(_BY_WORDS, unless=self.unless)

    def add_contracts(self) -> None:
        query = self.query
        if "underlying" in self.given:
            if not "".join(self.given["underlying"].split()).startswith(query.name):
                return
            self.ctes.append(_GIVEN)
        elif query.name:
            self._range("name", query.name)
            self.ctes.append(_NAMES)
        else:
            return
        terms = ""
        if query.strike is not None:
            terms += " AND i.strike = :strike"
            self.values["strike"] = query.strike
        if query.option_type is not None:
            terms += " AND i.option_type = :side"
            self.values["side"] = query.option_type
        if query.kind is not None:
            terms += f" AND i.instrument_type = '{query.kind}'" + (
                " AND i.strike IS NULL" if query.kind == "FUT" else ""
            )
        self._each_state(_BY_CONTRACT, holders="holders", days=self._days(), terms=terms, gate=f"WHERE {self.unless}")

    def _days(self) -> str:
        conditions = ""
        if self.query.expiry is not None:
            self.values["day"] = self.query.expiry
            conditions += " AND d.expiry = :day"
        if self.query.month is not None:
            self.values["month"] = self.query.month
            conditions += " AND extract(month FROM d.expiry) = CAST(:month AS integer)"
        for place, number in enumerate(self.query.numbers):
            self.values[f"number_{place}"] = number
            value = f"CAST(:number_{place} AS integer)"
            conditions += f" AND {value} IN (extract(day FROM d.expiry), extract(year FROM d.expiry),"
            conditions += " extract(year FROM d.expiry) - 2000)"
        return conditions

    def _range(self, name: str, text: str) -> None:
        self.values[f"{name}_from"], self.values[f"{name}_to"] = text, after(text)

    def _each_state(self, branch: str, **parts: str) -> None:
        self.branches.extend(self._in_states(branch, **parts))

    def _in_states(self, branch: str, **parts: str) -> list[str]:
        """The branch for what is active and, if that is asked for, for what was."""
        made: list[str] = []
        for state in self.states:
            order, beyond = ("ASC", ">") if state == "true" else ("DESC", "<")
            common = {"state": state, "order": order, "beyond": beyond, "filters": self.filters}
            made.append(branch.format(**common, limit=self.limit, **parts))
        return made

    def finish(self) -> tuple[str, dict[str, Any]]:
        ctes = f"WITH RECURSIVE {', '.join(self.ctes)}" if self.ctes else ""
        union = " UNION ALL ".join(self.branches)
        sql = _RANKED.format(ctes=ctes, columns=_COLUMNS, union=union, token=self.token, limit=self.limit)
        return sql, self.values
