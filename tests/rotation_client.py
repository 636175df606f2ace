"""A rotation that is killed: `python -m tests.rotation_client URL RING` rotates, in small batches, and says how far it is."""

import asyncio
import sys

from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.trading import sessions


async def main(url: str, ring: str) -> None:
    async with DatabaseManager(url, "testing", "migrations_only", verify_migrations=False) as manager:

        def said(done: int, total: int) -> None:
            print(done, total, flush=True)

        await sessions.rotate(manager, KeyRing.parse(ring), batch=20, progress=said)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
