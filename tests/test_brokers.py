"""When a broker's login ends: by the clocks of its zone, across midnight and where they are set forward or back.

`python -m tests.test_brokers` prints the table.
"""

import itertools
import re
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from core.config.brokers import (
    DEFAULT_BROKERS,
    DailyExpiry,
    ExpiryPolicy,
    FixedLifetime,
    NoExpiry,
    parse_brokers,
)
from core.config.settings import Settings, SettingsError

IST, BERLIN, NEW_YORK = ZoneInfo("Asia/Kolkata"), ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
SIX = "zerodha=daily 06:00 Asia/Kolkata"
TABLE: list[tuple[str, str, str, str]] = [
    # rule, login by the clocks of its zone, its end by the same clocks, the same in UTC
    ("daily 06:00 Asia/Kolkata", "2026-11-30 05:59", "2026-11-30 06:00", "2026-11-30 00:30"),
    ("daily 06:00 Asia/Kolkata", "2026-11-30 06:00", "2026-12-01 06:00", "2026-12-01 00:30"),
    ("daily 06:00 Asia/Kolkata", "2026-11-30 08:45", "2026-12-01 06:00", "2026-12-01 00:30"),
    ("daily 06:00 Asia/Kolkata", "2026-11-30 23:59", "2026-12-01 06:00", "2026-12-01 00:30"),
    ("daily 06:00 Asia/Kolkata", "2026-12-31 23:59", "2027-01-01 06:00", "2027-01-01 00:30"),
    ("daily 06:00 Asia/Kolkata", "2028-02-28 12:00", "2028-02-29 06:00", "2028-02-29 00:30"),
    ("daily 03:30 Asia/Kolkata", "2026-11-30 00:00", "2026-11-30 03:30", "2026-11-29 22:00"),
    # Berlin: forward on 29 March 2026 (02:00 -> 03:00), back on 25 October (03:00 -> 02:00).
    ("daily 06:00 Europe/Berlin", "2026-03-28 12:00", "2026-03-29 06:00", "2026-03-29 04:00"),
    ("daily 06:00 Europe/Berlin", "2026-10-24 12:00", "2026-10-25 06:00", "2026-10-25 05:00"),
    ("daily 02:30 Europe/Berlin", "2026-03-28 12:00", "2026-03-29 03:00", "2026-03-29 01:00"),
    ("daily 02:30 Europe/Berlin", "2026-03-29 03:00", "2026-03-30 02:30", "2026-03-30 00:30"),
    ("daily 02:30 Europe/Berlin", "2026-10-24 12:00", "2026-10-25 02:30", "2026-10-25 00:30"),
    # New York: forward on 8 March 2026, back on 1 November (02:00 -> 01:00).
    ("daily 02:30 America/New_York", "2026-03-07 20:00", "2026-03-08 03:00", "2026-03-08 07:00"),
    ("daily 01:30 America/New_York", "2026-10-31 20:00", "2026-11-01 01:30", "2026-11-01 05:30"),
    ("daily 16:00 America/New_York", "2026-11-01 00:30", "2026-11-01 16:00", "2026-11-01 21:00"),
    # Lord Howe goes by half an hour; Apia left 30 December 2011 out altogether.
    ("daily 02:15 Australia/Lord_Howe", "2026-10-03 12:00", "2026-10-04 02:30", "2026-10-03 15:30"),
    ("daily 06:00 Pacific/Apia", "2011-12-29 12:00", "2011-12-31 00:00", "2011-12-30 10:00"),
    ("24h", "2026-11-30 08:45", "2026-12-01 08:45", "2026-12-01 08:45"),
    ("never", "2026-11-30 08:45", "never", "never"),
]


def policy_of(rule: str) -> ExpiryPolicy:
    return parse_brokers(f"x={rule}")["x"]


def zone_of(policy: ExpiryPolicy) -> tzinfo:
    return policy.zone if isinstance(policy, DailyExpiry) else UTC


def ends(rule: str, login: str) -> tuple[str, str]:
    policy = policy_of(rule)
    zone = zone_of(policy)
    end = policy.expires_at(datetime.fromisoformat(login).replace(tzinfo=zone))
    if end is None:
        return "never", "never"
    assert end.tzinfo is UTC
    return f"{end.astimezone(zone):%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(("rule", "login", "local", "utc"), TABLE)
def test_the_six_oclock_table(rule: str, login: str, local: str, utc: str) -> None:
    assert ends(rule, login) == (local, utc)


def test_a_login_within_the_hour_that_comes_twice_ends_at_the_first_that_is_still_to_come() -> None:
    policy = DailyExpiry(time(2, 30), BERLIN)
    first = datetime(2026, 10, 25, 2, 45, tzinfo=BERLIN, fold=0)  # after the first 02:30, before the second
    second = datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    for login in (first, second):
        assert policy.expires_at(login) == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN)


ZONES = st.sampled_from(
    ["Asia/Kolkata", "Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu",
     "Pacific/Apia", "Pacific/Chatham", "Africa/Casablanca", "America/Sao_Paulo", "UTC"]
).map(ZoneInfo)  # fmt: skip
MINUTES = st.times().map(lambda at: at.replace(second=0, microsecond=0))
LOGINS = st.datetimes(datetime(1990, 1, 1), datetime(2036, 1, 1), timezones=st.just(UTC))
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def skipped(wall: datetime, zone: ZoneInfo) -> bool:
    back = wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None)
    return back != wall


@given(LOGINS, MINUTES, ZONES)
@settings(max_examples=300)
@example(datetime(2026, 3, 29, 0, 59, tzinfo=UTC), time(2, 30), BERLIN)
@example(datetime(2026, 3, 29, 1, 0, tzinfo=UTC), time(2, 30), BERLIN)
def test_a_daily_end_is_the_next_time_that_the_zones_clocks_show_it(login: datetime, at: time, zone: ZoneInfo) -> None:
    end = DailyExpiry(at, zone).expires_at(login)
    assert end > login and end.tzinfo is UTC
    local = end.astimezone(zone)
    gone = [
        day for day in (local.date() + timedelta(days=n) for n in (-1, 0)) if skipped(datetime.combine(day, at), zone)
    ]
    if not gone:
        assert local.time() == at and not (local.fold and local.replace(fold=0).utcoffset() != local.utcoffset())
        assert end - login <= timedelta(hours=25, minutes=30) or zone.key == "Pacific/Apia"
    elif local.time() != at:
        # The clocks jump over it at that moment: just before they show less than `at`.
        before = (end - timedelta(microseconds=1)).astimezone(zone)
        assert before.utcoffset() != local.utcoffset()
        assert before.replace(tzinfo=None) < datetime.combine(gone[-1], at) < local.replace(tzinfo=None)


@given(LOGINS, MINUTES, ZONES, OFFSETS)
def test_in_which_zone_the_login_is_written_makes_no_difference(
    login: datetime, at: time, zone: ZoneInfo, offset: timezone
) -> None:
    policy = DailyExpiry(at, zone)
    assert policy.expires_at(login.astimezone(offset)) == policy.expires_at(login)


@given(st.lists(LOGINS, min_size=2, max_size=5), MINUTES, ZONES)
def test_who_logs_in_later_ends_no_sooner(logins: list[datetime], at: time, zone: ZoneInfo) -> None:
    found = [DailyExpiry(at, zone).expires_at(login) for login in sorted(logins)]
    assert found == sorted(found)


@given(LOGINS, MINUTES, st.just(IST))
def test_without_daylight_saving_a_login_ends_within_a_day(login: datetime, at: time, zone: ZoneInfo) -> None:
    end = DailyExpiry(at, zone).expires_at(login)
    assert timedelta(0) < end - login <= timedelta(days=1) and end.astimezone(zone).time() == at


@given(LOGINS, st.integers(1, 10 * 365 * 86_400))
def test_a_fixed_lifetime_is_that_long(login: datetime, seconds: int) -> None:
    assert FixedLifetime(timedelta(seconds=seconds)).expires_at(login) - login == timedelta(seconds=seconds)


# Reading them


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta(days=3_661), timedelta.max])
def test_no_login_lasts_no_time_or_for_ever_by_a_number(lifetime: timedelta) -> None:
    with pytest.raises(ValueError, match="ten years"):
        FixedLifetime(lifetime)


def test_the_time_of_a_daily_end_is_of_its_zones_clocks() -> None:
    with pytest.raises(ValueError, match="no zone of its own"):
        DailyExpiry(time(6, tzinfo=UTC), ZoneInfo("Asia/Kolkata"))


def test_the_default_has_the_brokers_that_there_are() -> None:
    found = parse_brokers(DEFAULT_BROKERS)
    assert {name: str(policy) for name, policy in found.items()} == {
        "paper": "never",
        "zerodha": "daily 06:00 Asia/Kolkata",
        "kite": "daily 06:00 Asia/Kolkata",
        "upstox": "daily 03:30 Asia/Kolkata",
    }
    with pytest.raises(TypeError):
        found["x"] = NoExpiry()  # type: ignore[index]


NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
POLICIES = st.one_of(
    st.just(NoExpiry()),
    st.builds(FixedLifetime, st.integers(1, 3_660 * 24).map(lambda hours: timedelta(hours=hours)).filter(
        lambda length: length.total_seconds() < 10_000_000)),
    st.builds(DailyExpiry, MINUTES, ZONES),
)  # fmt: skip


@given(st.dictionaries(NAMES, POLICIES, min_size=1, max_size=5), st.sampled_from([",", " , ", ",\n", ",,"]))
def test_what_policies_are_written_as_is_read_as_the_same(brokers: dict[str, ExpiryPolicy], comma: str) -> None:
    assert parse_brokers(comma.join(f"{name} = {policy}" for name, policy in brokers.items())) == brokers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no broker is named"),
        (" , ,", "no broker is named"),
        ("zerodha", "zerodha has no rule"),
        ("zerodha=", "rule of zerodha is none of"),
        ("=never", "broker's name"),
        ("Zerodha=never", "broker's name"),
        ("a b=never", "broker's name"),
        ("x" * 33 + "=never", "broker's name"),
        ("a=never,a=24h", "twice"),
        ("a=0h", "none of"),
        ("a=24", "none of"),
        ("a=-1h", "none of"),
        ("a=1.5h", "none of"),
        ("a=3661d", "longer than ten years"),
        ("a=daily 24:00 UTC", "24:00 is no time"),
        ("a=daily 06:60 UTC", "06:60 is no time"),
        ("a=daily 6:00 UTC", "none of"),
        ("a=daily 06:00", "none of"),
        ("a=daily 06:00 Asia/Nowhere", "no time zone Asia/Nowhere"),
        ("a=daily 06:00 Asia", "no time zone Asia"),
        ("a=daily 06:00 ../etc/passwd", "none of"),
        ("a=daily 06:00 /etc/passwd", "a: "),
        ("a=hourly", "none of"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_brokers(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        found = parse_brokers(text)
    except ValueError:
        return
    assert found and all(isinstance(policy, DailyExpiry | FixedLifetime | NoExpiry) for policy in found.values())


@given(st.text("abc=,: 0123456789hd/never daily UTC", max_size=40))
def test_what_nearly_fits_is_read_or_refused_too(text: str) -> None:
    try:
        found = parse_brokers(text)
    except ValueError:
        return
    assume(found)
    for policy in found.values():
        end = policy.expires_at(datetime(2026, 11, 30, tzinfo=UTC))
        assert end is None or end > datetime(2026, 11, 30, tzinfo=UTC)


@pytest.mark.usefixtures("clean")
def test_the_setting_is_read_where_the_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADING__BROKERS", f"mine=8h, {SIX}")
    assert {name: str(policy) for name, policy in Settings().trading.broker_policies.items()} == {
        "mine": "28800s",
        "zerodha": "daily 06:00 Asia/Kolkata",
    }
    monkeypatch.setenv("TRADING__BROKERS", "mine=sometimes")
    with pytest.raises(SettingsError, match=r"TRADING__BROKERS.*rule of mine"):
        Settings()


def main() -> None:
    """The table, as it comes out."""
    print(f"{'rule':32} {'login':17} {'ends':17} in UTC")
    for rule, rows in itertools.groupby(TABLE, key=lambda row: row[0]):
        for _, login, *_ in rows:
            print(f"{rule:32} {login:17} {ends(rule, login)[0]:17} {ends(rule, login)[1]}")


if __name__ == "__main__":
    main()
