"""Column types that refuse what would otherwise be changed in silence, and documents that stand in JSONB.

Every type raises `InvalidInput`, naming the column, before anything is sent: in rows and in comparisons. None is NULL.
`checked_...` are the same rules as functions.
"""

from core.database.types._columns import Document, TextArray
from core.database.types._documents import DocumentList, DocumentModel, invalid_input
from core.database.types._events import watch_documents
from core.database.types._free_form import JsonObject
from core.database.types._json import MAX_JSON_DEPTH, JsonValue, checked_json, strict_json_dumps, strict_json_loads
from core.database.types._numbers import (
    MONEY_PRECISION,
    MONEY_SCALE,
    Boolean,
    Integer32,
    Integer64,
    Money,
    checked_money,
    round_money,
)
from core.database.types._text import Bytes, FoldedText, Text, checked_text, folded, folding_sql
from core.database.types._times import Date, UtcDateTime, checked_date, checked_utc

watch_documents()

__all__ = [
    "MAX_JSON_DEPTH",
    "MONEY_PRECISION",
    "MONEY_SCALE",
    "Boolean",
    "Bytes",
    "Date",
    "Document",
    "DocumentList",
    "DocumentModel",
    "FoldedText",
    "Integer32",
    "Integer64",
    "JsonObject",
    "JsonValue",
    "Money",
    "Text",
    "TextArray",
    "UtcDateTime",
    "checked_date",
    "checked_json",
    "checked_money",
    "checked_text",
    "checked_utc",
    "folded",
    "folding_sql",
    "invalid_input",
    "round_money",
    "strict_json_dumps",
    "strict_json_loads",
]
