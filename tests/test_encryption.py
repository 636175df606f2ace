"""Envelopes open in their own place under their own key, and nowhere else; keys are never shown."""

import base64
import copy
import pickle
from os import urandom
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from core.database.encryption import MAX_SECRET_BYTES, KeyRing, is_guessed_key, refuse_guessed_keys
from core.database.errors import EnvelopeTampered, InvalidInput, InvalidKey, UnknownKey
from core.database.models import ENVELOPE_MAX_BYTES

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))
RING = KeyRing({"k1": FIRST, "2026-old.key_A": SECOND}, active="k1")
PLACE = {"table": "trading_sessions", "column": "credentials", "row_key": "session-1"}

# Made once by hand with AESGCM; they must open for as long as version 1 exists.
KNOWN = [
    (
        "01026b310000000000000000000000006fdfd6bbc65faec967c3cc5b351da3aab3c3b200dd5b3bed599e3acde7db4c4a",
        PLACE,
        b"access-token-123",
    ),
    (
        "010e323032362d6f6c642e6b65795f41000102030405060708090a0b600649607a99d31238db65a3cf5a6ed8",
        PLACE | {"row_key": "é"},
        b"",
    ),
    (
        "01026b31ffffffffffffffffffffffff4a424bba13f05179ebb6907a152caa3346588fe7f6",
        {"table": "t", "column": "c", "row_key": "1"},
        "päss".encode(),
    ),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
places = st.fixed_dictionaries({"table": texts, "column": texts, "row_key": texts})


@pytest.mark.parametrize(("envelope", "place", "secret"), KNOWN)
def test_envelopes_of_the_first_release_open_for_ever(envelope: str, place: dict[str, str], secret: bytes) -> None:
    assert RING.open(bytes.fromhex(envelope), **place) == secret


def test_the_format_is_the_documented_one() -> None:
    envelope = RING.seal(b"secret", **PLACE)
    assert envelope[:4] == b"\x01\x02k1"
    nonce, sealed = envelope[4:16], envelope[16:]
    parts = (b"\x01", b"k1", b"trading_sessions", b"credentials", b"session-1")
    place = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert AESGCM(FIRST).decrypt(nonce, sealed, place) == b"secret"
    assert len(envelope) == 2 + 2 + 12 + len(b"secret") + 16


@given(st.binary(max_size=200), places)
def test_what_is_sealed_opens_in_its_place(secret: bytes, place: dict[str, str]) -> None:
    envelope = RING.seal(secret, **place)
    assert RING.open(envelope, **place) == secret
    assert len(secret) < 8 or secret not in envelope
    assert RING.seal(secret, **place) != envelope


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_text_comes_back_as_text(secret: str) -> None:
    assert RING.open_text(RING.seal(secret, **PLACE), **PLACE) == secret


@given(st.binary(max_size=20), st.data())
def test_any_flipped_bit_is_found(secret: bytes, data: st.DataObject) -> None:
    envelope = bytearray(RING.seal(secret, **PLACE))
    bit = data.draw(st.integers(0, len(envelope) * 8 - 1))
    envelope[bit // 8] ^= 1 << bit % 8
    with pytest.raises((EnvelopeTampered, UnknownKey)):
        RING.open(bytes(envelope), **PLACE)


def test_every_bit_and_every_truncation_of_one_envelope_is_found() -> None:
    envelope = RING.seal(b"secret", **PLACE)
    for bit in range(len(envelope) * 8):
        flipped = bytearray(envelope)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((EnvelopeTampered, UnknownKey)):
            RING.open(bytes(flipped), **PLACE)
    for length in range(len(envelope)):
        with pytest.raises(EnvelopeTampered):
            RING.open(envelope[:length], **PLACE)
    with pytest.raises(EnvelopeTampered):
        RING.open(envelope + b"\0", **PLACE)


@given(places, places)
def test_an_envelope_opens_in_no_other_place(place: dict[str, str], other: dict[str, str]) -> None:
    envelope = RING.seal(b"secret", **place)
    for field in place:
        elsewhere = place | {field: other[field]}
        if elsewhere != place:
            with pytest.raises(EnvelopeTampered):
                RING.open(envelope, **elsewhere)


def test_places_that_run_into_one_another_are_told_apart() -> None:
    envelope = RING.seal(b"secret", table="ab", column="c", row_key="d")
    for table, column, row_key in (("a", "bc", "d"), ("ab", "cd", "x"), ("abc", "d", "d"), ("ab", "c", "d\0")):
        with pytest.raises(EnvelopeTampered):
            RING.open(envelope, table=table, column=column, row_key=row_key)


def test_a_missing_key_is_named_and_an_envelope_under_another_key_does_not_open() -> None:
    envelope = KeyRing({"gone": FIRST}, active="gone").seal(b"secret", **PLACE)
    with pytest.raises(UnknownKey, match="'gone'") as refused:
        RING.open(envelope, **PLACE)
    assert (refused.value.table, refused.value.column) == ("trading_sessions", "credentials")
    same_id = KeyRing({"gone": SECOND}, active="gone")
    with pytest.raises(EnvelopeTampered):
        same_id.open(envelope, **PLACE)


def test_rotation_seals_under_the_active_key_and_still_opens_the_old() -> None:
    old = KeyRing({"old": FIRST}, active="old")
    envelope = old.seal("token", **PLACE)
    ring = KeyRing({"new": SECOND, "old": FIRST}, active="new")
    assert ring.needs_rotation(envelope)
    again = ring.seal(ring.open(envelope, **PLACE), **PLACE)
    assert not ring.needs_rotation(again)
    assert ring.open_text(again, **PLACE) == "token"
    with pytest.raises(UnknownKey):
        old.open(again, **PLACE)
    with pytest.raises(EnvelopeTampered):
        ring.needs_rotation(b"plain token")


def test_a_canary_tells_whether_the_keys_are_the_right_ones() -> None:
    canary = RING.seal_canary()
    RING.check_canary(canary)
    with pytest.raises(UnknownKey):
        KeyRing({"other": SECOND}, active="other").check_canary(canary)
    with pytest.raises(EnvelopeTampered):
        KeyRing({"k1": SECOND}, active="k1").check_canary(canary)
    with pytest.raises(EnvelopeTampered):
        RING.check_canary(RING.seal(b"else", **PLACE))
    with pytest.raises(EnvelopeTampered):
        RING.check_canary(RING.seal(b"else", table="encryption", column="canary", row_key="canary"))


def test_keys_are_made_and_parsed() -> None:
    first, second = KeyRing.generate_key(), KeyRing.generate_key()
    assert first != second
    assert len(base64.b64decode(first)) == 32
    ring = KeyRing.parse(f"new:{first}, old:{second}")
    assert ring.active_id == "new"
    assert ring.key_ids == ("new", "old")
    assert KeyRing.parse(f"old:{second}").open(KeyRing.parse(f"old:{second}").seal(b"x", **PLACE), **PLACE) == b"x"


TEXT = base64.b64encode(FIRST).decode()


def test_a_file_of_keys_may_have_a_line_for_each_and_comments() -> None:
    first, second, third = (KeyRing.generate_key() for _ in range(3))
    text = f"# ours\r\n\r\nk3:{third}  # since Monday\r\n k2:{second},\n\n#k9:{first}\nk1:{first}\n# the end"
    assert KeyRing.parse(text).key_ids == ("k3", "k2", "k1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"k1:{TEXT}\nk2:typed", "key 2 of 2 is not base64"),
        (f"k1:{TEXT},k2", "key 2 of 2 is not written id:base64"),
        (f"k1:{TEXT}\n\nk1:{TEXT}", "key 2 of 2 has the id of one before it"),
        ("# k1:none\n", "there is no key"),
    ],
)
def test_which_key_is_none_is_told(text: str, words: str) -> None:
    with pytest.raises(InvalidKey, match=words):
        KeyRing.parse(text)


WRONG = [
    "",
    ",",
    "nocolon",
    ":" + base64.b64encode(FIRST).decode(),
    "k1:",
    "k1:not base64!",
    "k1:" + base64.b64encode(FIRST[:16]).decode(),
    "k1:" + base64.b64encode(FIRST + b"x").decode(),
    "k 1:" + base64.b64encode(FIRST).decode(),
    "é:" + base64.b64encode(FIRST).decode(),
    "x" * 33 + ":" + base64.b64encode(FIRST).decode(),
    f"k1:{base64.b64encode(FIRST).decode()},k1:{base64.b64encode(SECOND).decode()}",
    f"k1:{base64.b64encode(FIRST).decode()},k2:{base64.b64encode(FIRST).decode()}",
    f"k1:{base64.b64encode(FIRST).decode()},",
    f"k1:{base64.b64encode(FIRST).decode()},,\nk2:{base64.b64encode(SECOND).decode()}",
    f"#k1:{base64.b64encode(FIRST).decode()}",
]


@pytest.mark.parametrize("text", WRONG)
def test_keys_that_are_no_keys_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(InvalidKey) as refused:
        KeyRing.parse(text)
    _, _, key = text.partition(":")
    assert not key or key not in str(refused.value)
    assert base64.b64encode(FIRST).decode() not in str(refused.value)


def test_the_constructor_holds_the_same_rules() -> None:
    bad: list[Any] = [({}, "k1"), ({"k1": FIRST}, "k2"), ({"k1": "x" * 32}, "k1"), ({5: FIRST}, 5)]
    for keys, active in bad:
        with pytest.raises(InvalidKey):
            KeyRing(keys, active=active)


def test_no_form_of_a_ring_shows_a_key() -> None:
    shown = [repr(RING), str(RING), f"{RING}", f"{RING!r:>80}", "%s %r" % (RING, RING)]  # noqa: UP031
    for text in shown:
        assert "k1" in text
        for key in (FIRST, SECOND):
            for secret in (key.hex(), base64.b64encode(key).decode(), repr(key), str(list(key))):
                assert secret not in text
    assert not hasattr(RING, "__dict__")
    for name in KeyRing.__slots__:
        assert repr(FIRST) not in repr(getattr(RING, name))


def test_a_ring_is_never_pickled_or_copied() -> None:
    for work in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds keys"):
            work(RING)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="holds keys"):
            pickle.dumps(RING, protocol)


@pytest.mark.parametrize(
    ("secret", "place"),
    [
        (5, PLACE),
        (None, PLACE),
        (bytearray(b"x"), PLACE),
        ("\ud800", PLACE),
        (b"x" * (MAX_SECRET_BYTES + 1), PLACE),
        (b"x", PLACE | {"row_key": ""}),
        (b"x", PLACE | {"row_key": 5}),
        (b"x", PLACE | {"row_key": "\ud800"}),
    ],
)
def test_what_cannot_be_sealed_is_refused_without_repeating_it(secret: Any, place: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        RING.seal(secret, **place)
    assert refused.value.column == "credentials"


def test_bytes_are_not_taken_for_text() -> None:
    with pytest.raises(InvalidInput, match="not text"):
        RING.open_text(RING.seal(b"\xff", **PLACE), **PLACE)


@pytest.mark.parametrize("envelope", [None, "text", b"", b"\x01", b"\x02" + b"x" * 60, b"\x01\x00" + b"x" * 60])
def test_what_is_no_envelope_is_refused(envelope: Any) -> None:
    with pytest.raises(EnvelopeTampered):
        RING.open(envelope, **PLACE)


async def test_the_table_takes_every_envelope_and_refuses_clear_text(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("INSERT INTO users (username, hashed_password) VALUES ('trader', 'hash')")
        insert = (
            "INSERT INTO trading_sessions (session_id, user_id, broker, credentials) SELECT $1, id, $1, $2 FROM users"
        )
        shortest = KeyRing({"k": FIRST}, active="k").seal(b"", **PLACE)
        longest = KeyRing({"k" * 32: FIRST}, active="k" * 32).seal(b"x" * MAX_SECRET_BYTES, **PLACE)
        for name, envelope in (("short", shortest), ("long", longest), ("none", None)):
            await connection.execute(insert, name, envelope)
            assert (
                await connection.fetchval("SELECT credentials FROM trading_sessions WHERE broker = $1", name)
                == envelope
            )
        too_long = b"\x01" + b"x" * ENVELOPE_MAX_BYTES
        for clear in (b"", b"plain access token of some length, 40 or so", shortest[:-1], too_long):
            with pytest.raises(asyncpg.CheckViolationError, match="ck_trading_sessions_credentials"):
                await connection.execute(insert, "clear", clear)
    finally:
        await connection.close()


# Keys that somebody typed

TYPED = {
    "zeros": bytes(32),
    "one byte": b"\xa7" * 32,
    "0 to 31": bytes(range(32)),
    "downwards": bytes(range(255, 223, -1)),
    "threes, past 255": bytes(3 * number % 256 for number in range(200, 232)),
    "two bytes": b"\x00\xff" * 16,
    "half of it twice": bytes(range(7, 250, 16)) * 2,
    "a word over and over": b"secretsecretsecretsecretsecretse",
    "words": b"correct horse battery staple !! ",
    "a padded word": b"changeme".ljust(32, b"\0"),
    "digits": b"01234567890123456789012345678901",
    "few bytes": bytes([1, 2, 3, 250]) * 7 + bytes([3, 2, 1, 250]),
}


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("environment", ["staging", "production"])
def test_a_key_that_somebody_typed_is_refused_where_money_is_real(name: str, environment: Any) -> None:
    key = TYPED[name]
    assert is_guessed_key(key)
    ring = KeyRing({"typed": key, "random": urandom(32)}, active="typed")
    with pytest.raises(InvalidKey, match="'typed' is a pattern or a text") as caught:
        refuse_guessed_keys(ring, environment)
    assert "openssl rand" in str(caught.value)
    assert base64.b64encode(key).decode() not in str(caught.value)
    refuse_guessed_keys(ring, "development")
    refuse_guessed_keys(ring, "testing")


def test_an_old_typed_key_may_open_what_it_sealed_until_that_is_sealed_anew() -> None:
    ring = KeyRing({"old": TYPED["words"], "new": urandom(32)}, active="new")
    refuse_guessed_keys(ring, "production")
    assert ring.guessed_ids == ("old",)


def test_no_random_key_is_taken_for_a_typed_one() -> None:
    assert not any(is_guessed_key(urandom(32)) for _ in range(20_000))
    assert KeyRing.parse("k:" + KeyRing.generate_key()).guessed_ids == ()
