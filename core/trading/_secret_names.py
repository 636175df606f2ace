"""Names under which people keep what is secret."""

import re

_SECRET = re.compile(r"token|secret|passw|api_?key|credential|authori[sz]ation|cookie|private_?key", re.IGNORECASE)
_HARMLESS = re.compile(r"(instrument|exchange)_?tokens?|.*_(expiry|expires|expires_at|expires_in|type)", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a key of a JSON object speaks of a secret: `access_token`, `apiKey`; not `instrument_token`."""
    return _SECRET.search(name) is not None and _HARMLESS.fullmatch(name) is None
