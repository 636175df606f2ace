"""Where every engine is born: the URL read, the pool, the time limits, TLS, PgBouncer."""

from core.database.engine._brokers import BROKER
from core.database.engine._build import EngineOptions, build_engine, tls_mode
from core.database.engine._guessed import is_guessed, refuse_guessed
from core.database.engine._url import DatabaseUrl

__all__ = ["BROKER", "DatabaseUrl", "EngineOptions", "build_engine", "is_guessed", "refuse_guessed", "tls_mode"]
