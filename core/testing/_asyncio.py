"""The async fixtures as pytest-asyncio knows them, in its strict mode too; registered where that plugin is."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest_asyncio

from core.testing._plugin import connected, opened

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.connection import DatabaseManager


# Neither names a loop scope: they follow asyncio_default_fixture_loop_scope, as an application's own fixtures do.
@pytest_asyncio.fixture
async def _panda_manager_asyncio(panda_database: str) -> AsyncGenerator["DatabaseManager"]:
    async for manager in connected(panda_database):
        yield manager


@pytest_asyncio.fixture
async def _panda_session_asyncio(panda_manager: "DatabaseManager") -> AsyncGenerator["AsyncSession"]:
    async for session in opened(panda_manager):
        yield session
