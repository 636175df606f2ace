"""Who may do what in the database: owner, application, restricted, reader; what is missing of it, and making it so.

The owner made the tables and migrates. The application is the group of the logins that run: they read and write every row, but
of auth_events, to which they only add, own nothing, and may take the restricted role, as which a broker's session works. The reader sees every row and no secret. Roles
belong to the whole server; rights to one database. A plan holds statements only, no password: logins are made by hand and put
into a group (GRANT panda_application TO the_login).
"""

from core.database.roles._plan import RolesPlan, apply, plan
from core.database.roles._rights import APPLICATION_ROLE, READER_ROLE, RoleStep

__all__ = ["APPLICATION_ROLE", "READER_ROLE", "RoleStep", "RolesPlan", "apply", "plan"]
