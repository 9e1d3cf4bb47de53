"""What is used of torch, datasets, accelerate, huggingface_hub and typer, and what lmms-eval needs of others."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from lmms_textweighted.upstream.unpromised import Names

TORCH = Names("torch", "2.14.1")
DATASETS = Names("datasets", "5.2.0")
ACCELERATE = Names("accelerate", "1.15.0")
HUB = Names("huggingface-hub", "2.4.0")
TYPER = Names("typer", "0.29.2")
FILELOCK = Names("filelock", "4.1.0 to 4.2.12")
TENACITY = Names("tenacity", "9.2.1")
QWEN = Names("qwen-vl-utils", "0.0.14")
OTHERS = (TORCH, DATASETS, ACCELERATE, HUB, TYPER, FILELOCK, TENACITY, QWEN)


@TORCH("distributed.distributed_c10d._get_default_store", "parallel.watch")
def _store() -> bool:
    from torch.distributed.distributed_c10d import _get_default_store

    return not inspect.signature(_get_default_store).parameters


@TORCH("a store's clone(), set_timeout, multi_get", "parallel.watch")
def _states() -> bool:
    from datetime import timedelta

    from torch.distributed import HashStore, PrefixStore

    base = HashStore()
    store: Any = PrefixStore("textweighted", base.clone())
    store.set_timeout(timedelta(seconds=5))
    store.set("a", "1")
    store.set("b", "2")
    return list(store.multi_get(["a", "b"])) == [b"1", b"2"]


@TORCH("compile(module)._orig_mod, Module.compile() sets _compiled_call_impl", "families.attach")
def _compiled() -> bool:
    import torch

    inner = torch.nn.Linear(1, 1)
    before = inner._compiled_call_impl
    compiled: Any = torch.compile(inner)
    inner.compile()
    return before is None and compiled._orig_mod is inner and inner._compiled_call_impl is not None


@TORCH("utils.collect_env.get_pretty_env_info", "lmms-eval")
def _environment() -> bool:
    from torch.utils.collect_env import get_pretty_env_info

    return callable(get_pretty_env_info)


@DATASETS("config.HF_HUB_OFFLINE, asked at every load", "hub")
def _offline() -> bool:
    import datasets

    from lmms_textweighted.hub import offline

    with offline():
        try:
            datasets.load_dataset("nobody/nothing-of-this-name")
        except ConnectionError as error:
            return "Offline" in str(error)
    return False


@DATASETS("Image(decode=False): a picture's bytes and path", "harness.tasks")
def _image() -> bool:
    import io

    import datasets
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    made = datasets.Dataset.from_dict({"image": [{"bytes": file.getvalue(), "path": None}]})
    raw = made.cast_column("image", datasets.Image()).cast_column("image", datasets.Image(decode=False))
    return raw[0]["image"]["bytes"] == file.getvalue()


@DATASETS("utils._filelock.FileLock, utils.metadata.MetadataConfigs", "lmms-eval")
def _locks() -> bool:
    from datasets.utils import _filelock
    from datasets.utils.metadata import MetadataConfigs

    return isinstance(_filelock.FileLock, type) and isinstance(MetadataConfigs, type)


@ACCELERATE("Accelerator() reads $ACCELERATE_USE_CPU, PartialState does not", "parallel.processes")
def _cpu() -> bool:
    from accelerate import state

    return "ACCELERATE_USE_CPU" in inspect.getsource(state.AcceleratorState)


@HUB("constants.HF_HUB_OFFLINE and ENDPOINT, asked at every request", "hub")
def _constants() -> bool:
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_hub_download

    from lmms_textweighted.hub import offline

    with offline():
        try:
            hf_hub_download("nobody/nothing-of-this-name", "config.json")
        except OSError:
            return constants.ENDPOINT.startswith("http")
    return False


@HUB("utils.get_session(): a Client of httpx, or of httpx2, whose module has ConnectError, ConnectTimeout, …", "hub")
def _session() -> bool:
    from lmms_textweighted.hub import http_library

    library = http_library()
    names = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")
    return all(issubclass(getattr(library, name), library.TransportError) for name in names) and bool(
        library.InvalidURL
    )


@TYPER("Context.get_parameter_source(name), whose text ends in COMMANDLINE for what was given", "cli.sweep")
def _source() -> bool:
    from typer.testing import CliRunner

    app = typer.Typer()

    @app.command()
    def tried(context: typer.Context, given: int = 1, left: int = 1) -> None:
        names = ("given", "left")
        print([str(context.get_parameter_source(name)).endswith("COMMANDLINE") for name in names])

    return CliRunner().invoke(app, ["--given", "2"]).output.strip() == "[True, False]"


@FILELOCK("_api.FileLockMeta.__call__, _api.BaseFileLock", "lmms-eval")
def _filelock() -> bool:
    import filelock._api as api

    return callable(api.FileLockMeta.__call__) and isinstance(api.BaseFileLock, type)


@TENACITY("RetryError.last_attempt.exception()", "harness.documents")
def _retry() -> bool:
    import tenacity

    def fail() -> None:
        raise OSError("why")

    try:
        tenacity.Retrying(stop=tenacity.stop_after_attempt(1))(fail)
    except tenacity.RetryError as error:
        return str(error.last_attempt.exception()) == "why"
    return False


@QWEN("fetch_image(one message's piece, image_patch_size=): the picture in multiples of two patches", "families.qwen")
def _fetch_image() -> bool:
    from PIL import Image
    from qwen_vl_utils import fetch_image

    piece: dict = {"image": Image.new("RGB", (100, 60)), "min_pixels": 1, "max_pixels": 28 * 28 * 4}
    return fetch_image(piece, image_patch_size=14).size == (56, 28)
