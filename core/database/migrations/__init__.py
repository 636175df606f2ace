"""The migration files and Alembic's entry to them.

`versions/` holds one file for each revision, named `YYYY_MM_DD_NNNN_what.py` after its date and its revision id, which is
a number of four digits that grows by one. The files form one line: each names the one before it in `down_revision`. A file
is frozen history: it imports nothing of this project, and once released it is never edited.

`core.database.schema` runs them, each in a transaction of its own and with the lock and statement limits set; `env.py`
works on the connection that it is handed and reads no URL. A file whose work cannot be in a transaction
(`CREATE INDEX CONCURRENTLY`) does it under `op.get_context().autocommit_block()`, and is alone in its file. Its limits are
then the session's, so it is run on the server's own URL and not through PgBouncer.
"""
