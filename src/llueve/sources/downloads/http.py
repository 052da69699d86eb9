"""Check a request, get a file over HTTP from a busy or unreliable server, and write it whole."""

import email.utils
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

import requests

from llueve.errors import DataError, UsageError
from llueve.files import write_whole

T = TypeVar("T")

CHUNK_BYTES = 2**16
BUSY = 429
TEMPORARY = (408, BUSY, 500, 502, 503, 504)
"""Status codes after which another attempt may succeed."""
BUSY_WAIT_S = 60.0
"""Wait for a busy server that gives no time: its shortest limit is per minute."""
LONG_LIMITS = ("hour", "dai", "day", "month")
"""Words in the reason of a busy server that mean a limit of an hour or more."""
BROKEN_CONNECTION = (
    requests.exceptions.ConnectionError, requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError,
)  # fmt: skip
FIRST_DAY = date(1940, 1, 1)
"""First day of ERA5, also at Open-Meteo."""
USER_AGENT = "llueve (weather data for rain classifiers)"
CHANCE = random.Random()
"""A generator of its own: waiting threads leave that of the program as it is."""


def check_request(start: date, end: date, expectations: Mapping[str, bool]) -> None:
    """Refuse a wrong period, or the first message of `expectations` whose condition is not met, with a UsageError."""
    period = {
        f"--start {start}: the archive begins on {FIRST_DAY}": start >= FIRST_DAY,
        f"--end {end}: expected a day from --start {start} on": end >= start,
    }
    for message, met in {**period, **expectations}.items():
        if not met:
            raise UsageError(message)


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts, and the waits between them in seconds."""

    attempts: int = 6
    first_wait_s: float = 2.0
    """Wait after the first failure; it doubles with every further one."""
    longest_wait_s: float = 120.0
    """If a server asks for a longer wait, the command ends and names the wait."""
    connect_s: float = 10.0
    silence_s: float = 120.0
    """Longest time without a byte."""
    attempt_s: float = 900.0
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int) -> float:
        """Exponential back-off in seconds; a random half of it keeps many clients from returning together."""
        return min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s) * CHANCE.uniform(0.5, 1.0)


class _TemporaryError(Exception):
    """An attempt failed in a way that another attempt may not."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(
    session: requests.Session,
    url: str,
    parameters: Mapping[str, str],
    decode: Callable[[bytes], T],
    most_bytes: int,
    policy: RetryPolicy,
    on_wait: Callable[[str], None] = lambda _: None,
) -> T:
    """Return the decoded answer to one GET request.

    Args:
        session, url, parameters: connection, address and query.
        decode: decodes the bytes of the answer. Its DataError means that they are incomplete: they are fetched again.
        most_bytes: longest answer in bytes, unpacked.
        policy: number of attempts and their waits.
        on_wait: receives a short text before each wait.

    Raises:
        UsageError: the server refuses the request itself; the message has its reason.
        DataError: the server cannot be reached, or the last attempt failed too.
    """
    for failures in range(1, policy.attempts + 1):
        try:
            content = _attempt(session, url, parameters, most_bytes, policy)
            try:
                return decode(content)
            except DataError as error:
                raise _TemporaryError(str(error)) from error
        except _TemporaryError as error:
            wait_s = policy.wait_s(failures) if error.wait_s is None else error.wait_s
            if wait_s > policy.longest_wait_s:
                raise DataError(
                    f"{url}: {error}, and asks to wait {wait_s:.0f} s; run the command again then: finished parts are kept"
                ) from error
            if failures == policy.attempts:
                advice = "run the command again later: finished parts are kept"
                raise DataError(f"{url}: failed {failures} times: {error}; {advice}") from error
            on_wait(f"{error}; trying again in {wait_s:.0f} s")
            policy.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _attempt(
    session: requests.Session, url: str, parameters: Mapping[str, str], most_bytes: int, policy: RetryPolicy
) -> bytes:
    timeout = (policy.connect_s, policy.silence_s)
    headers = {"User-Agent": USER_AGENT}
    try:
        with session.get(url, params=parameters, stream=True, timeout=timeout, headers=headers) as answer:
            content = _body(answer, url, most_bytes, policy.attempt_s)
            if answer.status_code != 200:
                _refuse(answer, content, url)
            return content
    except requests.exceptions.SSLError as error:
        raise DataError(f"{url}: the server's certificate cannot be trusted ({error}); check the address") from error
    except BROKEN_CONNECTION as error:
        cause: BaseException = error
        while (inner := cause.__context__ or cause.__cause__) is not None:
            cause = inner
        reason = " ".join((str(cause) or type(cause).__name__).split())[:200]
        raise _TemporaryError(f"the connection broke ({reason})") from error
    except (requests.exceptions.RequestException, UnicodeError) as error:
        raise DataError(f"{url}: the request cannot be sent ({error}); check the address") from error


def _body(answer: requests.Response, url: str, most_bytes: int, attempt_s: float) -> bytes:
    """The unpacked bytes of the answer, with limits on their number and on the time."""
    chunks, size, start = [], 0, time.monotonic()
    for chunk in answer.iter_content(CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > most_bytes:
            raise DataError(f"{url}: the answer is longer than {most_bytes:,} bytes; ask for fewer variables or points")
        if time.monotonic() - start > attempt_s:
            raise _TemporaryError(f"the answer was not complete after {attempt_s:.0f} s")
    return b"".join(chunks)


def _refuse(answer: requests.Response, content: bytes, url: str) -> None:
    """Raise for an answer other than 200: a temporary error, or a final one."""
    reason = _reason(content) or answer.reason or "no reason given"
    status = answer.status_code
    if status in TEMPORARY:
        wait_s = _retry_after_s(answer)
        if status == BUSY and wait_s is None:
            if any(word in reason.lower() for word in LONG_LIMITS):
                raise DataError(f"{url}: {reason}; run the command again then: finished parts are kept")
            wait_s = BUSY_WAIT_S
        raise _TemporaryError(f"the server answers {status} ({reason})", wait_s)
    if 400 <= status < 500 and status not in (401, 403, 404):
        raise UsageError(f"{url}: refuses the request ({status}): {reason}; correct the request")
    raise DataError(f"{url}: answers {status} ({reason}); check the address")


def _reason(content: bytes) -> str | None:
    try:
        document = json.loads(content[:CHUNK_BYTES])
    except (ValueError, RecursionError):
        return None
    reason = document.get("reason") if isinstance(document, dict) else None
    return reason[:300] if isinstance(reason, str) and reason else None


def _retry_after_s(answer: requests.Response) -> float | None:
    """Seconds of the header Retry-After, which holds seconds or a date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        end = email.utils.parsedate_to_datetime(text)
        return max(0.0, ((end if end.tzinfo else end.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    return None


def write_output(path: Path, content: bytes) -> None:
    """Write a downloaded file, whole or not at all; a DataError reports a full or read-only disk, or a missing folder."""
    try:
        write_whole(path, [content])
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> DataError:
    """The error for a file or folder that cannot be written."""
    return DataError(f"{path}: cannot be written ({error.strerror or error}); choose another --output or free the disk")
