"""What is secret in a session's notes. The original kept the broker's access token there in the open."""

from typing import Any, cast

from core.database.types import strict_json_dumps
from core.trading._secret_names import is_secret_name

_ACCESS_TOKEN = "access_token"  # noqa: S105 - a name


def split(document: Any) -> tuple[Any, str | None]:
    """The document without its secrets, and these as the text to seal, None if there are none.

    A lone `access_token` is sealed as it is, which is what a session's `credentials` are here. Several secrets are
    sealed as a JSON object whose keys are their paths. A document that is no object is secret as a whole: it has no
    names to go by.
    """
    if document is None:
        return {}, None
    if not isinstance(document, dict):
        return None, strict_json_dumps(document)
    found: dict[str, Any] = {}
    clean = _without(document, "", found)
    if not found:
        return clean, None
    token = found.get(_ACCESS_TOKEN)
    if len(found) == 1 and isinstance(token, str):
        return clean, token
    return clean, strict_json_dumps(found)


def _without(value: Any, path: str, found: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_without(item, f"{path}[{index}]", found) for index, item in enumerate(cast("list[Any]", value))]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for key, member in cast("dict[str, Any]", value).items():
        here = f"{path}.{key}" if path else key
        if is_secret_name(key):
            if member not in (None, "", [], {}):
                found[here] = member
        else:
            kept[key] = _without(member, here, found)
    return kept
