"""Invented listed companies, and the demo's source of chance."""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["NSE_FIRST", "NSE_STRIDE", "Listed", "companies", "mix", "nse_token", "tick_paise"]

NSE_FIRST, NSE_STRIDE = 3_007, 11
"""The exchange tokens of the companies' shares on the NSE: the first, and how far each is from the one before."""

_FIRST = (
    "ADI", "BHAR", "CHAN", "DEV", "GAN", "HIM", "INDU", "JAY", "KAVE", "LAKSH", "MAHA", "NAR", "ORI", "PRA", "RAJ", "SAN",
)  # fmt: skip
_SECOND = (
    "TYA", "ATI", "DRA", "ESH", "GIRI", "HAN", "KAR", "LAYA", "MANI", "NETRA", "PURI", "RATNA", "SHILA", "TARA", "VANI", "YAM",
)  # fmt: skip
_TRADES = (
    ("BANK", "BANK"), ("CHEM", "CHEMICALS"), ("CEM", "CEMENT"), ("FIN", "FINANCE"), ("STL", "STEEL"), ("TECH", "TECHNOLOGIES"),
    ("PHARM", "PHARMA"), ("POWER", "POWER"), ("AUTO", "AUTOMOTIVE"), ("TEX", "TEXTILES"), ("FOOD", "FOODS"), ("LOG", "LOGISTICS"),
    ("INFRA", "INFRASTRUCTURE"), ("ENER", "ENERGY"), ("RLTY", "REALTY"), ("MEDIA", "MEDIA"),
)  # fmt: skip
_NAMES = len(_FIRST) * len(_SECOND) * len(_TRADES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """An invented company; `paise` is the price of a share."""

    symbol: str
    name: str
    paise: int


def mix(number: int) -> int:
    """64 well-mixed bits of an integer (SplitMix64), the same on every machine and in every Python."""
    value = (number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def tick_paise(paise: int) -> int:
    """The exchange's tick size by price band, both in paise."""
    bands = ((25_000, 1), (100_000, 5), (500_000, 10), (1_000_000, 50), (2_000_000, 100))
    return next((tick for limit, tick in bands if paise <= limit), 500)


def companies(count: int) -> Iterator[Listed]:
    """The first `count` companies; a symbol gets a number once all plain names are used up."""
    for index in range(count):
        # An odd multiplier visits every name once before any returns.
        pick = index * 1_663 % _NAMES
        first, second, (short, long) = _FIRST[pick >> 8], _SECOND[pick >> 4 & 15], _TRADES[pick & 15]
        number = index // _NAMES
        price = 1_000 + mix(index) % (60_000 if index % 3 else 400_000)
        yield Listed(
            symbol=f"{first}{second}{short}{number or ''}",
            name=f"{first}{second} {long} LTD" + (f" {number}" if number else ""),
            paise=price - price % tick_paise(price),
        )


def nse_token(number: int) -> int:
    """The instrument token of the share of company `number`, from 0, on the NSE."""
    return NSE_FIRST + NSE_STRIDE * number << 8 | 1
