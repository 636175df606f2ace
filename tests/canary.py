"""A word that is nowhere else, what it may look like, and where it was looked for.

`python -m tests.canary` pushes canaries through every failing path and place of tests/test_secrets.py and prints the report:
each path, how much was searched there, and in which forms.
"""

import base64
import functools
import hashlib
import secrets
import sys
from collections.abc import Collection
from dataclasses import dataclass

import pytest

_HEAD = 22
"""Characters of a canary that are looked for: it is also found where it was cut off after them."""
_DIGESTS = ("md5", "sha1", "sha256", "sha512")


@dataclass
class Search:
    """What was done at one path."""

    size: int = 0
    times: int = 0
    control: bool = False
    """A word that was put there on purpose was found by the same search."""


SEARCHED: dict[str, Search] = {}


def canary() -> str:
    return f"Canary{secrets.token_hex(16)}"


@functools.lru_cache(maxsize=256)
def forms(word: str) -> dict[str, bytes]:
    """The word, or the beginning of it, as it may stand somewhere: encodings of text, of bytes as text, and bare digests."""
    head = word[:_HEAD]
    plain = head.encode()
    found = {
        "utf-8": plain,
        "utf-16-le": head.encode("utf-16-le"),
        "utf-16-be": head.encode("utf-16-be"),
        "utf-32-le": head.encode("utf-32-le"),
        "utf-32-be": head.encode("utf-32-be"),
        "ebcdic": head.encode("cp500"),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        "hex in pairs": plain.hex(" ").encode(),
        "bytea escape": b"".join(b"\\%03o" % byte for byte in plain),
        "\\x escapes": b"".join(b"\\x%02x" % byte for byte in plain),
        "\\u escapes": b"".join(b"\\u%04x" % byte for byte in plain),
        "percent": b"".join(b"%%%02X" % byte for byte in plain),
        "entities": b"".join(b"&#%d;" % byte for byte in plain),
        "numbers": ", ".join(map(str, plain)).encode(),
        "reversed": plain[::-1],
    }
    for shift in range(3):  # base64 of a text that the word stands in depends on where it begins
        whole = base64.b64encode(b"\0" * shift + plain)
        first = (4 * shift + 2) // 3  # what also codes the bytes before
        found[f"base64 +{shift}"] = whole[first : len(whole) - 4]
    for shift in range(5):
        whole = base64.b32encode(b"\0" * shift + plain)
        found[f"base32 +{shift}"] = whole[(8 * shift + 4) // 5 : len(whole) - 8]
    for name in _DIGESTS:
        digest = hashlib.new(name, word.encode()).digest()
        found |= {name: digest, f"{name} in hex": digest.hex().encode()}
        found[f"{name} in base64"] = base64.b64encode(digest).rstrip(b"=")
    return found


def leaks(haystack: bytes | str, word: str) -> list[str]:
    """The forms in which the word is in there."""
    data = haystack.encode(errors="surrogateescape") if isinstance(haystack, str) else haystack
    return [name for name, form in forms(word).items() if form in data]


def nowhere(path: str, haystack: bytes | str, *words: str, but: Collection[str] = ()) -> None:
    """The words are in no form in what was found at that path, but those in which they are kept on purpose."""
    data = haystack.encode(errors="surrogateescape") if isinstance(haystack, str) else haystack
    for word in words:
        for name in leaks(data, word):
            if name in but:
                continue
            place = data.index(forms(word)[name])
            pytest.fail(f"{path}: the canary in {name}: {data[max(0, place - 300) : place + 60]!r}")
    search = SEARCHED.setdefault(path, Search())
    search.size += len(data)
    search.times += 1


def control(path: str, haystack: bytes | str, word: str) -> None:
    """The search is one: what was put there on purpose is found."""
    assert leaks(haystack, word), f"the control is not in {path}"
    SEARCHED.setdefault(path, Search()).control = True


class _Report:
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from tests.canary import SEARCHED  # the module that the tests know, not the one that is run

        line = terminalreporter.write_line
        line("")
        line(f"{'path':<52} {'searched':>14}   found")
        for path, search in SEARCHED.items():
            line(f"{path:<52} {search.size:>8,} bytes   nowhere{', the control there' if search.control else ''}")
        line(f"{len(SEARCHED)} paths, each searched in {len(forms('x'))} forms:")
        names, row = list(forms("x")), ""
        for name in names:
            if len(row) + len(name) > 90:
                line(f"  {row}")
                row = ""
            row += name + ("" if name == names[-1] else ", ")
        line(f"  {row}")


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:randomly", "tests/test_secrets.py", *sys.argv[1:]], plugins=[_Report()]))
