"""The hub is asked once: what counts as out of reach, and what then still works. Servers on loopback, no clock."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from lmms_textweighted import hub
from lmms_textweighted.errors import CheckpointError, InputError
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.paths import checkpoint_folder
from tests.checkpoints import make_checkpoint, make_tower

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _hub(monkeypatch, tmp_path):
    """Online, with an empty cache; a wait between two tries is a failure."""

    def wait(seconds: float) -> None:
        raise AssertionError(f"the hub is tried again after {seconds} s")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def point_to(monkeypatch: pytest.MonkeyPatch, port: int) -> str:
    """As HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    address = f"http://127.0.0.1:{port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    return address


@pytest.fixture
def refusing(monkeypatch) -> str:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return point_to(monkeypatch, port)


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, status: int) -> Iterator[list[str]]:
    """A server that answers everything with `status`; yields the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        point_to(monkeypatch, server.server_port)
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def put_into_cache(folder: Path, name: str, cache: Path) -> None:
    """As a download would leave it."""
    home = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)


def test_a_hub_that_refuses_is_asked_once_and_named_with_the_reason(refusing):
    with pytest.raises(CheckpointError, match=r"not on disk and the hub did not give it.*pretrained=tiny") as caught:
        load("some/llava")
    assert f"(no connection to {refusing}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hub.is_offline()
    assert hub.out_of_reach() == ""


def test_a_cached_checkpoint_loads_without_a_hub_and_says_so_once(refusing, tmp_path, caplog):
    put_into_cache(checkpoint_folder(), "some/tiny", tmp_path / "hub")
    model, _ = load("some/tiny")
    assert model.config.model_type == "llava"
    assert [record.getMessage() for record in caplog.records if refusing in record.getMessage()]
    assert sum("read from the cache" in record.getMessage() for record in caplog.records) == 1
    assert not hub.is_offline()


def test_a_cached_checkpoint_in_liuhaotian_format_loads_without_a_hub(refusing, tmp_path, caplog):
    folder = make_checkpoint(tmp_path / "made", tower=make_tower(tmp_path / "tower"))
    put_into_cache(folder, "some/llava", tmp_path / "hub")
    model, _ = load("some/llava", LoadOptions(loader="hf"))
    assert model.config.model_type == "llava"
    assert sum("read from the cache" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_hub_that_answers_with_an_error_is_there_and_not_asked_again(monkeypatch, status):
    with answering(monkeypatch, status) as asked:
        assert hub.no_connection() is None
        assert asked == ["/"]
        with pytest.raises(CheckpointError, match=r"the hub did not give it: give a local folder"):
            load("some/llava")
    assert [path for path in asked if path.startswith("/some/llava")]
    assert len(asked) == len(set(asked)) + 1  # the question itself, here and from load; no path twice


def test_a_hub_that_connects_and_does_not_answer_yet_is_slow_and_not_out_of_reach(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system connects, nobody reads
        point_to(monkeypatch, server.getsockname()[1])
        assert hub.no_connection() is None


def test_a_network_that_swallows_connections_is_out_of_reach(monkeypatch):
    class Session(type(hub.get_session())):  # type: ignore[misc]
        def head(self, url: str, *, timeout: tuple[float, ...], **_: Any) -> Any:
            library = sys.modules[type(self).__mro__[1].__module__.partition(".")[0]]
            assert timeout[0] == 7  # the user's, for a slow network
            raise library.ConnectTimeout("timed out")

    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "7")
    monkeypatch.setattr(hub, "get_session", Session)
    assert hub.no_connection() == "not within 7 s"


def test_a_name_that_is_not_looked_up_does_not_hold_the_run(monkeypatch):
    held = threading.Event()

    def look_up(*_: Any, **__: Any) -> None:
        held.wait()
        raise socket.gaierror("no such name")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert hub.no_connection() == "its name is not looked up in time"
    finally:
        held.set()


@pytest.mark.parametrize("address", ["hub.invalid", "ftp://127.0.0.1", "http://[", "http://127.0.0.1:port"])
def test_an_endpoint_that_is_no_address_is_a_reason_and_no_traceback(monkeypatch, address):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    assert hub.no_connection()


def test_offline_nothing_is_asked(monkeypatch):
    with answering(monkeypatch, 200) as asked:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError, match="the hub did not give it: give"):
            load("some/llava")
    assert asked == []


def test_a_folder_asks_nothing(monkeypatch):
    with answering(monkeypatch, 404) as asked:
        load("tiny")
        assert len(Documents.of_task("shapes_mcq", 1, single_prediction_prompt=False)) == 1
    assert asked == []


def test_a_task_whose_data_are_on_the_hub_asks_once(refusing, monkeypatch, tmp_path):
    import datasets

    tried: list[bool] = []

    def load_dataset(*_: Any, **__: Any) -> None:
        tried.append(hub.is_offline() and datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("not in the cache")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("lmms_eval.api.task.ConfigurableTask.download.retry.sleep", lambda _: None)
    with pytest.raises(InputError, match="data of task 'scienceqa_img_rank' cannot be loaded \\(not in the cache"):
        Documents.of_task("scienceqa_img_rank", 1, single_prediction_prompt=False)
    assert tried
    assert all(tried)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
