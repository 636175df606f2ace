"""The error tree: complete, picklable, silent about values, and still SQLAlchemy's."""

import asyncio
import inspect
import pickle
import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import sqlalchemy.exc
import sqlalchemy.orm.exc
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from core.database import errors
from core.database.encryption import KeyRing
from core.database.errors import InvalidKey, PandaDatabaseError, _rooms, _tree, forget_locals, forgets, scrub, translate

OURS = [getattr(errors, name) for name in errors.__all__ if inspect.isclass(getattr(errors, name))]
DRIVER = [
    item
    for item in vars(asyncpg.exceptions).values()
    if inspect.isclass(item) and issubclass(item, Exception) and not issubclass(item, Warning)
]
# Outcomes of a query or of the program, which say nothing of the database and stay what they are.
PROGRAM = {
    "AmbiguousColumnError", "NoDBAPILoaded", "ConstraintColumnNotFoundError", "AmbiguousForeignKeysError", "ArgumentError", "AsyncContextAlreadyStarted", "AsyncContextNotStarted",
    "AwaitRequired", "CircularDependencyError", "CompileError", "ConcurrentModificationError",
    "DetachedInstanceError", "DisconnectionError", "DontWrapMixin", "DuplicateColumnError", "EmulatedDBAPIException",
    "FlushError", "IdentifierError", "IllegalStateChangeError", "InvalidRequestError", "InvalidatePoolError",
    "LoaderStrategyException", "MappedAnnotationError", "MissingGreenlet", "MonitoredAttributeError",
    "MultipleResultsFound", "NoForeignKeysError", "NoInspectionAvailable", "NoReferenceError",
    "NoReferencedColumnError", "NoReferencedTableError", "NoResultFound", "NoSuchColumnError", "NoSuchModuleError",
    "NoSuchTableError", "ObjectDeletedError", "ObjectDereferencedError", "ObjectNotExecutableError",
    "ResourceClosedError", "SQLAlchemyError", "StaleDataError", "UnboundExecutionError", "UnevaluatableError",
    "UnmappedClassError", "UnmappedColumnError", "UnmappedError", "UnmappedInstanceError", "UnreflectableTableError",
    "UnsupportedCompilationError", "IncompatibleCollectionError", "DuckTypeError",
}  # fmt: skip


def state_of(cls: type[Exception]) -> str:
    return getattr(cls, "sqlstate", None) or ""


def driver_error(cls: type[Exception], message: str = "message") -> Exception:
    """As asyncpg makes it: the fields are set beside the message."""
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    return error


@pytest.mark.parametrize("cls", DRIVER, ids=lambda cls: cls.__name__)
def test_every_exception_of_the_driver_has_a_class_here(cls: type[Exception]) -> None:
    ours = translate(driver_error(cls))
    assert isinstance(ours, PandaDatabaseError)
    state = getattr(cls, "sqlstate", None)
    if state is not None:
        from core.database.errors._translate import _BY_CLASS, _BY_SQLSTATE

        stale = issubclass(cls, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError)
        expected = errors.StalePlan if stale else _BY_SQLSTATE.get(state, _BY_CLASS.get(state[:2]))
        assert type(ours) is (errors.PartitionMissing if state == "23514" else expected)
        assert ours.sqlstate == state


def test_every_sqlstate_class_of_postgresql_is_mapped() -> None:
    from core.database.errors._translate import _BY_CLASS

    known = {state_of(cls)[:2] for cls in DRIVER if state_of(cls)}
    assert known <= _BY_CLASS.keys()


@pytest.mark.parametrize("module", [sqlalchemy.exc, sqlalchemy.orm.exc], ids=lambda module: module.__name__)
def test_every_exception_of_sqlalchemy_is_translated_or_known_to_be_the_programs(module) -> None:
    for name, cls in vars(module).items():
        if not (inspect.isclass(cls) and issubclass(cls, Exception)) or issubclass(cls, Warning):
            continue
        if issubclass(cls, sqlalchemy.exc.DBAPIError):
            orig = AsyncAdapt_asyncpg_dbapi.Error("m", driver_error(asyncpg.UniqueViolationError))
            orig.__cause__ = driver_error(asyncpg.UniqueViolationError)
            assert isinstance(translate(cls("SELECT 1", {}, orig)), errors.UniqueViolation), name
        elif issubclass(cls, sqlalchemy.exc.StatementError):
            assert isinstance(translate(cls("m", "SELECT 1", {}, ValueError("secret"))), errors.InvalidInput), name
        elif name in {"TimeoutError", "PendingRollbackError"}:
            assert translate(cls("m")) is not None, name
        else:
            assert name in PROGRAM, f"{name} is neither translated nor known to be the program's own"


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_errors_survive_pickling_and_say_how_to_mend(cls: type[PandaDatabaseError]) -> None:
    error = cls("what happened", hint="Do this.", sqlstate="23505", constraint="uq", table="t", column="c")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == "what happened. Do this."
    assert (copy.sqlstate, copy.constraint, copy.table, copy.column) == ("23505", "uq", "t", "c")


def test_errors_are_still_sqlalchemys_and_pythons() -> None:
    assert issubclass(errors.UniqueViolation, sqlalchemy.exc.IntegrityError)
    assert issubclass(errors.StatementTimeout, sqlalchemy.exc.OperationalError)
    assert issubclass(errors.PoolExhausted, sqlalchemy.exc.TimeoutError)
    assert issubclass(errors.StatementFault, sqlalchemy.exc.ProgrammingError)
    assert issubclass(errors.HostUnreachable, ConnectionError)
    assert issubclass(errors.InvalidInput, ValueError)
    assert not issubclass(errors.PoolExhausted, TimeoutError)
    assert not issubclass(errors.StatementTimeout, TimeoutError)


def test_the_namespace_is_what_it_says() -> None:
    public = {name for name, item in vars(errors).items() if not name.startswith("_") and not inspect.ismodule(item)}
    assert public == set(errors.__all__)
    assert sorted(cls.__name__ for cls in OURS) == sorted(
        name
        for name, item in (vars(_tree) | vars(_rooms)).items()
        if inspect.isclass(item) and issubclass(item, Exception)
    )


@pytest.mark.parametrize("error", [KeyError("k"), ValueError("v"), TimeoutError(), RuntimeError()])
def test_what_is_not_the_databases_is_left_alone(error: Exception) -> None:
    assert translate(error) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), errors.HostUnreachable),
        (socket.gaierror(-2, "Name or service not known"), errors.HostUnreachable),
        (FileNotFoundError(2, "No such file"), errors.HostUnreachable),
        (TimeoutError(), errors.ConnectTimeout),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), errors.TlsRefused),
        (ConnectionError("PostgreSQL server rejected SSL upgrade"), errors.TlsRefused),
        (ConnectionError("unexpected connection_lost() call"), errors.HostUnreachable),
    ],
)
def test_what_fails_while_connecting_is_told_apart(error: OSError, expected: type[PandaDatabaseError]) -> None:
    assert type(translate(error, phase="connect")) is expected


@pytest.mark.parametrize(
    ("state", "phase", "expected"),
    [
        ("ConnectionDoesNotExistError", "commit", errors.CommitOutcomeUnknown),
        ("ConnectionDoesNotExistError", "statement", errors.ConnectionLost),
        ("AdminShutdownError", "commit", errors.CommitOutcomeUnknown),
        ("InternalServerError", "commit", errors.CommitOutcomeUnknown),
        ("SerializationError", "commit", errors.SerializationFailure),
        ("UniqueViolationError", "commit", errors.UniqueViolation),
    ],
)
def test_a_connection_lost_during_commit_is_told_from_a_refusal(state, phase, expected) -> None:
    assert type(translate(driver_error(getattr(asyncpg, state)), phase=phase)) is expected


def test_a_write_on_a_standby_is_a_mistake_when_read_only_and_a_demotion_otherwise() -> None:
    error = driver_error(asyncpg.ReadOnlySQLTransactionError)
    assert type(translate(error, read_only=True)) is errors.ReadOnlyViolation
    assert type(translate(error)) is errors.PrimaryDemoted


@pytest.mark.parametrize("cls", [asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError])
def test_an_unknown_name_says_how_to_find_out_whether_the_database_lacks_it(cls: type[Exception]) -> None:
    found = translate(driver_error(cls, "column told does not exist"))
    assert type(found) is errors.StatementFault
    assert "`panda migrate check`" in str(found)


SECRET = "s3cr3t-c4n4ry"


@pytest.mark.parametrize("cls", [item for item in DRIVER if getattr(item, "sqlstate", None)], ids=lambda c: c.__name__)
def test_no_value_is_left_in_a_formatted_traceback(cls: type[Exception]) -> None:
    quoting = state_of(cls).startswith(("22", "P0")) or state_of(cls) == "42601"
    error = driver_error(cls, f"it said {SECRET}" if quoting else "it said nothing")
    for name in ("detail", "hint", "context", "internal_query"):
        setattr(error, name, f"Key (token)=({SECRET})")
    adapted = AsyncAdapt_asyncpg_dbapi.Error(str(error.args[0]), error)
    adapted.__cause__ = error
    wrapped = sqlalchemy.exc.DBAPIError("INSERT", {"token": SECRET}, adapted)
    try:
        try:
            raise wrapped
        except sqlalchemy.exc.DBAPIError as caught:
            ours = translate(caught)
            assert ours is not None
            raise ours from caught.orig
    except PandaDatabaseError as final:
        shown = "".join(traceback.format_exception(final)) + repr(final) + repr(vars(error)) + repr(wrapped.params)
        shown += repr(pickle.dumps(final))
    assert SECRET not in shown


@given(st.text(min_size=1))
def test_scrubbing_leaves_nothing_of_any_text(text: str) -> None:
    error = driver_error(asyncpg.InvalidTextRepresentationError, f"«{text}»")
    error.detail = text  # type: ignore[attr-defined]
    scrub(error)
    assert error.detail is None  # type: ignore[attr-defined]
    assert f"«{text}»" not in str(error.args)


def test_a_cyclic_chain_of_causes_ends() -> None:
    first, second = driver_error(asyncpg.UniqueViolationError), driver_error(asyncpg.UniqueViolationError)
    first.__cause__, second.__cause__ = second, first
    assert isinstance(translate(first), errors.UniqueViolation)


@pytest.mark.parametrize("handled", [errors.UniqueViolation("before"), asyncpg.UniqueViolationError("before")])
@pytest.mark.parametrize(
    ("new", "phase", "expected"),
    [
        (asyncpg.DataError("invalid input for query argument $1"), "statement", errors.InvalidInput),
        (asyncpg.InterfaceError("connection is closed"), "statement", errors.StatementFault),
        (asyncpg.ConnectionDoesNotExistError("gone"), "commit", errors.CommitOutcomeUnknown),
    ],
)
def test_what_its_caller_was_handling_is_not_taken_for_the_error(handled, new, phase, expected) -> None:
    with pytest.raises(type(new)) as caught:
        try:
            raise handled
        except Exception:
            raise new  # noqa: B904 - as a statement in a handler does
    assert caught.value.__context__ is handled
    assert type(translate(caught.value, phase=phase)) is expected


async def test_frames_in_a_group_of_errors_forget_their_locals_too() -> None:
    async def given(secret: str) -> None:
        KeyRing.parse.__wrapped__(KeyRing, secret)  # type: ignore[attr-defined]

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(given("k1:" + "Xyzzy" * 5))
    forget_locals(caught.value)
    for error in caught.value.exceptions:
        frames = inspect.getinnerframes(error.__traceback__)  # type: ignore[arg-type]
        below = [frame.frame.f_locals for frame in frames if frame.frame.f_globals["__name__"].startswith("core.")]
        assert below and all(frame == {} for frame in below)


def test_our_frames_forget_their_locals_and_the_callers_keep_theirs() -> None:
    def caller() -> None:
        mine = "kept"
        assert mine
        KeyRing.parse("k1:" + "A" * 30)

    with pytest.raises(InvalidKey) as caught:
        caller()
    kept = [frame.frame.f_locals.get("mine") for frame in inspect.getinnerframes(caught.value.__traceback__)]  # type: ignore[arg-type]
    assert "kept" in kept
    forget_locals(caught.value)
    frames = inspect.getinnerframes(caught.value.__traceback__)  # type: ignore[arg-type]
    assert [frame.frame.f_locals.get("mine") for frame in frames] == kept
    below = [frame for frame in frames if frame.frame.f_globals["__name__"].startswith("core.")]
    assert below and all(frame.frame.f_locals == {} for frame in below)


@pytest.mark.parametrize("given", ["k1:" + "Xyzzy" * 5, b"Xyzzy"], ids=["refused", "a bug"])
def test_what_is_given_a_secret_keeps_it_in_no_frame(given: Any) -> None:
    parse = KeyRing.parse.__wrapped__.__get__(KeyRing)  # type: ignore[attr-defined]
    forgetful, awaited = forgets(lambda **named: parse(**named)), forgets(_awaited(parse))
    assert inspect.iscoroutinefunction(awaited) and not inspect.iscoroutinefunction(forgetful)
    for call in (lambda: forgetful(text=given), lambda: asyncio.run(awaited(text=given))):
        with pytest.raises((InvalidKey, TypeError)) as caught:
            call()
        frames = inspect.getinnerframes(caught.value.__traceback__)  # type: ignore[arg-type]
        ours = [frame.frame.f_locals for frame in frames if frame.frame.f_globals["__name__"].startswith("core.")]
        assert len(ours) >= 2 and "Xyzzy" not in repr(ours)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(**named: Any) -> Any:
        return function(**named)

    return call
