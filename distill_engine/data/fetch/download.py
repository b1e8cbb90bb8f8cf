"""One file over HTTP, going on where a broken transfer stopped."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from distill_engine.data.errors import DataError, shown

Progress = Callable[[int, int | None], None]

ATTEMPTS = 4
LARGEST_ARCHIVE_BYTES = 4 * 1024**3
_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class FetchError(DataError):
    """Data that could not be fetched. The message says what, from where, why and what to do."""


class _Broken(Exception):
    """A transfer that may go better next time."""


def download(url: str, part: Path, progress: Progress, first_pause_s: float = 1.0) -> None:
    """Bring `url` into the file `part`; what that file holds already is not asked for again where the server can.

    progress       hears of bytes so far and in all (None where the server does not say)
    first_pause_s  seconds before the first new attempt; doubled for each further one without a new byte
    Raises FetchError: an address that cannot be used, an answer other than the file, `ATTEMPTS` in a row without a
    new byte, a file above `LARGEST_ARCHIVE_BYTES`, a full disk. What arrived stays in `part` for the next call.
    Whether the bytes are the right ones is for the caller's checksum to say.
    """
    useless = 0
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        while True:
            before = _size(part)
            try:
                _transfer(client, url, part, progress)
                return
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise FetchError(f"{url} cannot be fetched: {error}. It is an http or https address. Correct it.")\
                    from error  # fmt: skip
            except (httpx.TransportError, _Broken) as error:
                useless = 0 if _size(part) > before else useless + 1
                if useless >= ATTEMPTS:
                    raise _gave_up(url, part, error) from error
            except OSError as error:
                raise FetchError(
                    f"{part} cannot be written: {error.strerror or error}. Free some space or choose another --root; "
                    "what arrived is kept."
                ) from error
            time.sleep(first_pause_s * 2 ** max(useless - 1, 0))


def _transfer(client: httpx.Client, url: str, part: Path, progress: Progress) -> None:
    """One request for what `part` does not hold yet."""
    held = _size(part)
    # The bytes of the file itself are wanted, not of a compressed form of it, so that positions mean the same.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 416 and held:
            _check_nothing_left(answer, part, held)
            return
        if answer.status_code in _RETRIED_STATUS:
            raise _Broken(f"the server answered {answer.status_code} {answer.reason_phrase}")
        if answer.status_code not in (200, 206):
            raise FetchError(
                f"{url} was answered with {answer.status_code} {answer.reason_phrase}. The archive is not there for "
                "us. Check the address, or name a mirror (--url-base, --url) or a copy (--archive)."
            )
        goes_on = answer.status_code == 206 and held > 0
        if goes_on and _range_start(answer) != held:
            part.unlink()
            raise _Broken("the server sent another part than was asked for")
        total = _total(answer, held if goes_on else 0)
        _check_size(url, total or 0)
        with part.open("ab" if goes_on else "wb") as file:
            done = held if goes_on else 0
            progress(done, total)
            for chunk in answer.iter_raw():
                done += len(chunk)
                _check_size(url, done)
                file.write(chunk)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done != total:
            raise _Broken(f"{done} of {total} bytes arrived")


def _check_nothing_left(answer: httpx.Response, part: Path, held: int) -> None:
    """The server has nothing behind what we hold: that is all of it, or `part` is longer than the file."""
    if answer.headers.get("Content-Range", "").removeprefix("bytes */") != str(held):
        part.unlink()
        raise _Broken("what an earlier attempt left does not fit the file")


def _range_start(answer: httpx.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else None


def _total(answer: httpx.Response, held: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return held + int(length) if length.isdecimal() else None


def _check_size(url: str, size: int) -> None:
    if size > LARGEST_ARCHIVE_BYTES:
        raise FetchError(
            f"{url} sends {size} bytes or more; no archive is above {LARGEST_ARCHIVE_BYTES}. This is another file. "
            "Check the address."
        )


def _gave_up(url: str, part: Path, error: Exception) -> FetchError:
    held = _size(part)
    kept = f" The {held} bytes that arrived are kept: the same command goes on from there." if held else ""
    return FetchError(
        f"{url} did not arrive: {type(error).__name__.removeprefix('_')}: {shown(str(error))} ({ATTEMPTS} attempts "
        f"without a new byte).{kept} Check the network, or name a mirror (--url-base, --url) or a copy (--archive)."
    )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
