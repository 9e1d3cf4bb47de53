"""The demo, served while a block is open."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from lmms_textweighted.demo.serve import server_of

HOSTILE = '<img src="https://elsewhere.example/x" onerror="document.title=\'owned\'"><b>bold</b>'


@contextmanager
def served(llava: Any, name: str) -> Iterator[str]:
    """The address of a demo of a loaded model."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = server_of(llava, name, host="127.0.0.1", port=port, max_new_tokens=2)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends = time.monotonic() + 60
    while not server.started and time.monotonic() < ends:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)
