"""The demo over HTTP, for this machine's own browsers: a page of three files, and two addresses that speak JSON.

    GET  /api/about                                     {"host", "plugins": […], "examples": […]}
    POST /api/answer  {"text": str, "plugins": [str]}   what `Demo.answer` returns
    an error                                            {"error": one line}, status 4xx

Nobody else's page can ask: a request must say `application/json`, which a foreign page may not send unasked, and name
this machine as its host. The page may load nothing that does not come from here (`POLICY`), and runs no inline script,
so that a text or a name of a knowledge base never becomes code.
"""

from __future__ import annotations

import json
import socket
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from kinject.demo.demo import Demo

LONGEST_BODY = 1 << 16  # bytes
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY + "; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ANY = ("0.0.0.0", "::")


def listen(bind: str, port: int) -> socket.socket:
    """Opens the socket, so that a port that is taken is told before anything is loaded; port 0 = any free one.

    Raises:
      InputError: the address is not this machine's, or the port is taken.
    """
    try:
        return socket.create_server((bind, port), family=socket.AF_INET6 if ":" in bind else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"--bind {bind} --port {port}", str(error), "choose another") from None


def address(listening: socket.socket) -> str:
    """Where a browser finds the page."""
    bind, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)
    return f"http://{shown}:{port}/"


def make_app(demo: Demo, bind: str = "127.0.0.1") -> Starlette:
    """The application; `bind` is the name or address under which it may be asked, beside this machine's own."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def said(content: Any, status: int = 200) -> Response:
        return JSONResponse(content, status, HEADERS)

    async def page(request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return Response(files("kinject.demo").joinpath("page", name).read_bytes(), 200, HEADERS, kind)

    async def about(request: Request) -> Response:
        return said(demo.about())

    async def answer(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return said({"error": "body: it is not application/json"}, 415)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_BODY:
                return said({"error": f"body: it has more than {LONGEST_BODY:,} bytes"}, 413)
        try:
            return said(await run_in_threadpool(demo.answer, *read_question(bytes(body))))
        except InputError as error:
            return said({"error": str(error)}, 422)

    allowed = ["*"] if bind in ANY else ["localhost", "127.0.0.1", "[::1]", bind]
    routes = [Route(path, page) for path in PAGE]
    routes += [Route("/api/about", about), Route("/api/answer", answer, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed)])


def read_question(body: bytes) -> tuple[str, list[str]]:
    """Reads the body of a question: the text, and the names of plugins.

    Raises:
      InputError: not JSON, or a field that is missing or of another type.
    """
    try:
        asked = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("body", f"it is not JSON: {error}") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("text"), str):
        raise InputError("body", "the field text is missing, or no text")
    plugins = asked.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(one, str) for one in plugins):
        raise InputError("body", "the field plugins is no list of names")
    return asked["text"], plugins


def make_server(demo: Demo, bind: str = "127.0.0.1") -> Any:
    """A uvicorn `Server`, which `run(sockets=[…])` runs until `should_exit` is set or a signal comes.

    Raises:
      InputError: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn

        app = make_app(demo, bind)
    except ImportError as error:
        raise InputError("kinject demo", f"{error.name} is not installed", "pip install 'kinject[demo]'") from None
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False))
