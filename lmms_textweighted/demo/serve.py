"""Serve the demo to this machine: one process, no telemetry, nothing from another host."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

from lmms_textweighted.demo.app import build, check_gradio
from lmms_textweighted.errors import InputError
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.prompts import check_template

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A browser that obeys it asks no other host for anything, whatever gradio's page names.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' blob: data:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)


def run_demo(
    model_path: str,
    options: LoadOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    conv_mode: str | None = None,
    max_new_tokens: int = 64,
) -> None:
    """Load the model and serve until the process is interrupted. Raises InputError where that cannot be."""
    check_gradio()
    check_port(host, port)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: give at least 1")
    template = conv_mode and check_template(conv_mode)
    quiet_libraries()
    llava = PrunedLlava(*load(model_path, options), template=template)
    print(f"http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl+C ends it)", flush=True)
    server_of(llava, model_path, host=host, port=port, max_new_tokens=max_new_tokens).run()


def check_port(host: str, port: int) -> None:
    """Raise InputError for an address that cannot be listened on."""
    if not 1 <= port <= 65535:
        raise InputError(f"port is {port}: give 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with closing(socket.socket(family, socket.SOCK_STREAM)) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
    except OSError as error:
        raise InputError(
            f"host {host!r}, port {port} cannot be listened on ({error.strerror or error}): give another --port"
        ) from error


def server_of(llava: PrunedLlava, name: str, *, host: str, port: int, max_new_tokens: int = 64) -> Any:
    """A uvicorn server of the page, not yet running."""
    # Before the import: gradio then tells nobody that it was started.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    if host in LOOPBACK:  # else a page of elsewhere, whose name was made to mean this machine, could ask it
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "::1"])
    page = build(llava, name, max_new_tokens=max_new_tokens)
    page.queue(default_concurrency_limit=1)
    # Fonts of this machine: gradio's own theme asks another host for them.
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gradio.mount_gradio_app(app, page, path="/", show_error=False, theme=theme, footer_links=[])
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
