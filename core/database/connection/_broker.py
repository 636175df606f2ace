"""The broker of a session, checked before anything is sent."""

from core.database.errors import InvalidInput
from core.database.records import BROKER_RULE


def checked_broker(broker: str) -> str:
    """The name, or `InvalidInput`: it becomes part of the statement that begins the transaction."""
    try:
        return BROKER_RULE(broker)
    except InvalidInput as fault:
        raise InvalidInput(f"broker: {fault.message}", column="broker") from None
