${quoted}

import sqlalchemy as sa
from alembic import op
% for line in imports:
${line}
% endfor

revision: str = "${up_revision}"
down_revision: str | None = ${'"' + down_revision + '"' if down_revision else None}
branch_labels: str | None = None
depends_on: str | None = None

# Seconds that one statement may wait for a lock, and may take. What waits for a lock stops all who come after it.
lock_timeout: float = ${lock_timeout}
statement_timeout: float = ${statement_timeout}


def upgrade() -> None:
${upgrade}


def downgrade() -> None:
${downgrade}
