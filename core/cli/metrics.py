"""`panda metrics`: what the database says of itself, for Prometheus."""

import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import NOT_READY, CommandError
from core.cli._output import Output

if TYPE_CHECKING:
    from prometheus_client import Metric

    from core.config.settings import Settings
    from core.database.connection import DatabaseManager
    from core.database.metrics import Exporter

__all__ = ["register"]

_LOOPBACK = ("127.", "localhost", "::1")

Host = Annotated[str, typer.Option("--host", help="Address to listen on; this machine alone by default.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port to listen on; 0 takes a free one.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3_600, help="Seconds between two polls.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Metrics of the database and its server, for Prometheus.", no_args_is_help=True)
    group.command("serve")(command(serve))
    group.command("show")(command(show))
    app.add_typer(group, name="metrics")


def serve(out: Output, host: Host = "127.0.0.1", port: Port = 9187, interval: Interval = 15.0) -> None:
    """Poll the database and serve /metrics until ended.

    Starts and changes nothing. While the database is away alpha_panda_database_up is 0. There is no authentication:
    on another address than this machine's own, guard the port. SIGTERM and Ctrl-C end it with exit code 0.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    from core.cli._database import run

    registry = CollectorRegistry()
    exporter = _exporter(registry, interval=interval)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandError(
            f"cannot listen on {host} port {port}: {reason}",
            hint="Another process may have the port; choose one with --port.",
        ) from error
    try:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{server.server_port}/metrics"
        if not host.startswith(_LOOPBACK):
            out.warn("other machines can reach this address, and anybody who does can read the metrics")
        out.data({"url": url, "interval": interval})
        out.line(f"Serving {url}, polled every {interval:g} s; Ctrl-C ends it")
        run(_until_ended(exporter))
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def show(out: Output) -> int:
    """Poll once and print what Prometheus would read.

    Exit code 4 when the database does not answer, which the output says too: alpha_panda_database_up is 0.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from core.cli._database import run

    registry = CollectorRegistry()
    exporter = _exporter(registry, interval=60.0)
    with out.status("Asking the database"):
        run(exporter.once())
    out.data({"up": exporter.up, "metrics": [_plain(family) for family in registry.collect()]})
    out.raw(generate_latest(registry).decode().rstrip("\n"))
    return 0 if exporter.up else NOT_READY


async def _until_ended(exporter: "Exporter") -> None:
    """Run until SIGTERM or Ctrl-C; what polling raises is raised."""
    import asyncio

    loop = asyncio.get_running_loop()
    polling = asyncio.create_task(exporter.run())
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, polling.cancel)
    try:
        await asyncio.wait([polling])
        if not polling.cancelled():
            polling.result()
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


def _exporter(registry: Any, *, interval: float) -> "Exporter":
    from core.cli._database import settings_in_force
    from core.database.embedded import is_embedded_url
    from core.database.engine import DatabaseUrl
    from core.database.metrics import Exporter

    settings = settings_in_force()
    url = settings.database.postgres_url
    embedded = is_embedded_url(url)
    open_manager = _embedded_manager(settings) if embedded else _manager(settings)
    name = "embedded" if embedded else DatabaseUrl.parse(url).database or "postgres"
    return Exporter(open_manager, registry=registry, database=name, interval=interval)


def _manager(settings: "Settings") -> "Callable[[], DatabaseManager | None]":
    from core.cli._database import unchanging_manager

    unchanging_manager(settings)  # what cannot ever work is refused before anything is served
    return lambda: unchanging_manager(settings)


def _embedded_manager(settings: "Settings") -> "Callable[[], DatabaseManager | None]":
    """By the running server's own address: a manager of `embedded:` would start it, and keep it from stopping."""
    from core.cli._database import unchanging_manager
    from core.database.embedded import EmbeddedServer

    server = EmbeddedServer.from_url(settings.database.postgres_url)

    def open_manager() -> "DatabaseManager | None":
        url = server.status().url
        if url is None:
            return None
        database = settings.database.model_copy(update={"postgres_url": url})
        return unchanging_manager(settings.model_copy(update={"database": database}))

    return open_manager


def _plain(family: "Metric") -> dict[str, Any]:
    samples: Sequence[Any] = family.samples
    return {
        "name": family.name,
        "type": family.type,
        "help": family.documentation,
        "samples": [{"name": one.name, "labels": one.labels, "value": one.value} for one in samples],
    }
