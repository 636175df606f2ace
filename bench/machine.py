"""Where the figures come from: without this they mean nothing to anybody else."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import asyncpg
import psutil

from bench.server import Target

__all__ = ["describe", "headline"]

_PACKAGES = (
    "alpha-panda-core",
    "sqlalchemy",
    "asyncpg",
    "sqlmodel",
    "advanced-alchemy",
    "tortoise-orm",
    "piccolo",
    "psycopg",
)


async def describe(target: Target) -> dict[str, object]:
    """Processor, memory, load, and the versions of everything that takes part."""
    connection = await asyncpg.connect(**target.keywords)
    try:
        server = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "cores": psutil.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": server,
        "transport": "a unix socket" if target.host.startswith("/") else "TCP",
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def headline(machine: Mapping[str, object]) -> str:
    """Two lines for the head of a report."""
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GB, load {machine['load']} at the start\n"
        f"Python {machine['python']}, PostgreSQL {machine['postgresql']} over {machine['transport']}, {machine['system']}"
    )


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    for line in described.read_text().splitlines() if described.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
