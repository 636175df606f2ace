"""Write the catalog of every revision beside the migrations: `python -m tests.expected_catalogs`, after a new migration.

The catalogs of released revisions do not change; a difference in one means that a released file was edited.
"""

import asyncio
import tempfile
from pathlib import Path

from core.database import schema
from core.database.embedded import EmbeddedServer
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.schema._expected import live, one_snapshot, write
from core.database.schema._scripts import MIGRATIONS


async def write_all(url: str, versions: Path = MIGRATIONS / "versions") -> list[Path]:
    """Migrate the empty database step by step and store what each revision makes."""
    engine = build_engine(DatabaseUrl.parse(url), EngineOptions())
    written: list[Path] = []
    for revision in schema.history(versions=versions):
        await schema.upgrade(engine, revision.revision, versions=versions)
        async with one_snapshot(engine) as connection:
            written.append(write(versions, revision.revision, await live(connection)))
    await engine.dispose()
    return written


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="panda-catalogs-") as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedServer(Path(folder) / "server")
        try:
            for file in asyncio.run(write_all(server.ensure())):
                print(file)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
