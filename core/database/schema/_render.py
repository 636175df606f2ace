"""One migration as SQL, with the limits that it runs under. Imports Alembic."""

import re

from sqlalchemy import Connection, MetaData

from core.config.options import Timeouts
from core.database.schema import _alembic
from core.database.schema._lock import Step
from core.database.schema._scripts import Revision, Scripts


def render(
    connection: Connection | None,
    revision: Revision,
    *,
    scripts: Scripts,
    metadata: MetaData,
    up: bool,
    timeouts: Timeouts,
    partitions: _alembic.Partitions,
) -> str:
    """The SQL of `revision`, up or down. The caller holds `alembic_guard`; without a connection none is needed."""
    step = Step(*revision.limits(timeouts))
    below, above = revision.down_revision, revision.revision
    sql = _alembic.render(
        connection,
        scripts=scripts,
        metadata=metadata,
        upgrade=up,
        start=below if up else above,
        target=above if up else below,
        step=step,
        partitions=partitions,
    )
    limits = (
        f"BEGIN;\n\nSET LOCAL lock_timeout = '{step.lock * 1_000:.0f}ms';\n\n"
        f"SET LOCAL statement_timeout = '{step.statement * 1_000:.0f}ms';"
    )
    return re.sub(r"^BEGIN;$", limits, sql, flags=re.MULTILINE)
