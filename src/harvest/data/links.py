"""Are the videos behind web addresses still there? Asked without downloading them, many at a time, and only on demand."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harvest.data.sidecars import SUFFIXES as VIDEO_SUFFIXES
from harvest.data.stretches import filesystem
from harvest.interfaces import HarvestError, OnProgress

_AGENT = "harvest-check"
_FIRST_PAUSE_S = 0.5  # then twice as long each time
_LONGEST_PAUSE_S = 30.0  # whatever a server asks for
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # may be better in a moment
_NO_HEAD = {
    400,
    403,
    405,
    501,
}  # said by servers that do not answer HEAD: the first byte is asked for instead


@dataclass(frozen=True)
class LinkState:
    """What became of one address."""

    reason: str | None  # None where the video is there
    was_reached: bool = True  # False where no server answered: that may be our own network


def check_links(
    addresses: Sequence[str],
    *,
    timeout_s: float = 10.0,
    tries: int = 3,
    threads: int = 16,
    progress: OnProgress = lambda done, of: None,
) -> dict[str, str]:
    """The addresses at which no video is any more, with the reason: http(s), and all that fsspec knows.

    Raises HarvestError where not one of several servers could be reached: then it is this machine that is offline.
    """
    if timeout_s <= 0 or tries < 1 or threads < 1:
        raise HarvestError(
            f"links: expected a timeout above 0 s, tries and threads of at least 1, got {timeout_s}, {tries}, {threads}"
        )
    distinct = list(dict.fromkeys(addresses))
    answers: list[LinkState] = []
    with ThreadPoolExecutor(threads) as pool:
        for answer in pool.map(lambda address: _ask(address, timeout_s, tries), distinct):
            answers.append(answer)
            progress(len(answers), len(distinct))
    if answers and not any(answer.was_reached for answer in answers):
        raise HarvestError(
            f"none of the {len(distinct)} addresses could be reached (first: {distinct[0]}: {answers[0].reason}): is"
            " this machine online, and is its proxy set (HTTPS_PROXY)?"
        )
    return {
        address: answer.reason
        for address, answer in zip(distinct, answers, strict=True)
        if answer.reason is not None
    }


def _ask(address: str, timeout_s: float, tries: int) -> LinkState:
    if urllib.parse.urlsplit(address).scheme.lower() in ("http", "https"):
        return _ask_server(address, timeout_s, tries)
    try:
        fs, path = filesystem(address)
        return LinkState(None if fs.exists(path) else "not there")
    except (HarvestError, OSError, ValueError) as error:
        return LinkState(str(error), was_reached=False)


def _ask_server(address: str, timeout_s: float, tries: int) -> LinkState:
    method, answer = "HEAD", LinkState("never asked", was_reached=False)
    for number in range(tries):
        pause_s = _FIRST_PAUSE_S * 2**number
        try:
            return _response(address, method, timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            if method == "HEAD" and error.code in _NO_HEAD:
                method = "GET"
                try:
                    return _response(address, method, timeout_s)
                except urllib.error.HTTPError as second:
                    second.close()
                    error = second
                except (OSError, http.client.HTTPException) as second:
                    answer = LinkState(_unreached(second, timeout_s), was_reached=True)
                    continue
            answer = LinkState(f"{error.code} {error.reason}".strip())
            if error.code not in _BUSY:
                return answer
            asked_for = error.headers.get("Retry-After", "")
            if asked_for.isdigit():
                pause_s = min(float(asked_for), _LONGEST_PAUSE_S)
        except (OSError, http.client.HTTPException) as error:
            answer = LinkState(_unreached(error, timeout_s), was_reached=False)
        except ValueError as error:  # no host, a blank within
            return LinkState(f"not an address ({error})")
        if number + 1 < tries:
            time.sleep(pause_s)
    return answer


def _response(address: str, method: str, timeout_s: float) -> LinkState:
    headers = {"User-Agent": _AGENT} | ({"Range": "bytes=0-0"} if method == "GET" else {})
    request = urllib.request.Request(address, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        kind = response.headers.get_content_type()
        size = response.headers.get("Content-Length")
    path = urllib.parse.urlsplit(address).path.lower()
    # Servers that have lost a video like to answer with their front page.
    if kind == "text/html" and path.endswith(tuple(f".{suffix}" for suffix in VIDEO_SUFFIXES)):
        return LinkState("leads to a web page, not to a video")
    return LinkState("empty (0 bytes)" if size == "0" else None)


def _unreached(error: Exception, timeout_s: float) -> str:
    why = getattr(error, "reason", error)
    if isinstance(why, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return f"not reached: {getattr(why, 'strerror', None) or why or type(why).__name__}"
