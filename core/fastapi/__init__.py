"""FastAPI with a database: a session for each request, errors as HTTP, probes, and a shutdown that loses nothing.

    app = FastAPI()
    install(app, DatabaseManager.from_settings(get_settings()))

    @app.post("/strategies")
    async def define(strategy: NewStrategy, session: WriteSession) -> ...:

A request's `WriteSession` is one transaction. It commits after the endpoint has returned and its result has been turned
into a response, and before the first byte of that is sent: who sees a 2xx has it stored, and a COMMIT that fails is an
error to the client too. An exception, `HTTPException` included, rolls back; a response with an error status that is
returned, not raised, does not. Streaming and background work run after the session has ended: take the `Manager` there
and open sessions of your own, as for each message of a WebSocket.
"""

try:
    import fastapi as _  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise ModuleNotFoundError(
        "core.fastapi needs FastAPI; install it with: pip install 'alpha-panda-core[fastapi]'", name="fastapi"
    ) from None

from core.fastapi._client import ClientSource
from core.fastapi._install import Manager, ReadSession, WriteSession, install
from core.fastapi._problems import Problem, answer_problem, problem_of

__all__ = [
    "ClientSource",
    "Manager",
    "Problem",
    "ReadSession",
    "WriteSession",
    "answer_problem",
    "install",
    "problem_of",
]
