"""The hub is asked once, quickly, before its own client asks it many times.

Without a network, huggingface_hub tries every file six times, half a minute in all: a checkpoint that is not on disk
then fails late, and one that is in the cache loads after minutes.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub.constants
from huggingface_hub.utils import get_session

from lmms_textweighted.errors import InputError, first_line

SECONDS = 2.0
_WHY: list[str] = []  # why nothing is asked of the hub now

_logger = logging.getLogger(__name__)


def endpoint() -> str:
    """$HF_ENDPOINT, or the hub's own address."""
    return huggingface_hub.constants.ENDPOINT


def check_cache_place() -> None:
    """Raise InputError where no home folder is known, as in a container under a bare user id: `datasets` would make a
    folder `~` here, and then not find what it wrote into it."""
    place = os.environ.get("HF_DATASETS_CACHE") or huggingface_hub.constants.HF_HOME
    if os.path.expanduser(place).startswith("~"):
        raise InputError("no home folder is known, and so no place for data sets: set HF_HOME")


def no_connection() -> str | None:
    """Why the hub cannot be connected to, in a few words; None when it can.

    One HEAD request through huggingface_hub's own session, so that $HF_ENDPOINT, proxies and certificates are the
    user's. A failure is a connection that does not come about within SECONDS (or $HF_HUB_ETAG_TIMEOUT, where that is
    set for a slow network): a name that is not found, a port that refuses, a proxy that opens no tunnel. What answers,
    be it with an error, is there; what is connected and has not answered after SECONDS is slow and passes, too.
    """
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS)
    found: list[str | None] = []
    # In a thread, because looking up a name cannot be given a limit; all that comes after has one.
    thread = threading.Thread(target=lambda: found.append(_ask(seconds)), daemon=True)
    thread.start()
    thread.join(seconds + SECONDS + 1)
    return found[0] if found else "its name is not looked up in time"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, or `offline` is open."""
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def out_of_reach() -> str:
    """Inside `asked_once`, the reason why the hub cannot be reached, in brackets behind a space; else nothing."""
    return f" (no connection to {endpoint()}: {_WHY[-1]})" if _WHY else ""


@contextmanager
def asked_once() -> Iterator[None]:
    """Around what may ask the hub: where it cannot be reached, all inside works as under HF_HUB_OFFLINE.

    What is in the cache is read, with one warning; what is not fails at once. Not for several threads at a time.
    """
    why = None if is_offline() else no_connection()
    if why is None:
        yield
        return
    _WHY.append(why)
    try:
        with offline():
            yield
    finally:
        _WHY.remove(why)
    _logger.warning(f"no connection to {endpoint()} ({why}): read from the cache, which may be older")


@contextmanager
def offline() -> Iterator[None]:
    """While open, nothing is fetched from the hub, by models or by data sets."""
    modules: list[Any] = [huggingface_hub.constants]
    if "datasets" in sys.modules:
        modules.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def http_library() -> Any:
    """What huggingface_hub's session is of: httpx, or since 2.4 httpx2. The names in both are the same."""
    kind = next(kind for kind in type(get_session()).__mro__ if kind.__name__ == "Client")
    return sys.modules[kind.__module__.partition(".")[0]]


def _ask(seconds: float) -> str | None:
    session: Any = get_session()
    library = http_library()
    unconnected = (library.ConnectError, library.ConnectTimeout, library.ProxyError, library.UnsupportedProtocol)
    try:
        session.head(endpoint(), timeout=(seconds, SECONDS, SECONDS, SECONDS), follow_redirects=False)
    except library.ConnectTimeout:
        return f"not within {seconds:g} s"
    except (*unconnected, library.InvalidURL) as error:
        return first_line(error)
    except library.TransportError:  # connected, and then slow or odd
        return None
    return None
