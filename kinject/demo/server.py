"""The demo over HTTP, for this machine's own browsers: a page of three files, and two addresses that speak JSON.

    GET  /api/about                                     {"host", "plugins": […], "examples": […]}
    POST /api/answer  {"text": str, "plugins": [str]}   what `Demo.answer` returns
    an error                                            {"error": one line}, status 4xx

Nobody else's page can ask: a request must say `application/json`, which a foreign page may not send unasked, and name
this machine as its host: by what it is bound to, or, where that is every address, by an address or this machine's own
name, never by a foreign name that leads here. A body that is too long, or does not come, is not awaited, nor is an
answer, which waits for its turn behind others only for so long. The page may load nothing that does not come from here
(`POLICY`), and runs no inline script, so that a text or a name of a knowledge base never becomes code.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError
from kinject.json_file import parse

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from kinject.demo.demo import Demo

LONGEST_BODY = 1 << 16  # bytes
SECONDS = 10.0  # in which a body must come
ANSWER_SECONDS = 60.0  # in which an answer must come; the first one of a length is compiled in them
AT_ONCE = 64  # connections; those beyond are told to come again
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
LIMITS: dict[str, Any] = {
    "limit_concurrency": AT_ONCE,
    "timeout_keep_alive": 5,
    "h11_max_incomplete_event_size": 1 << 14,
}


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
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
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
        try:
            async with asyncio.timeout(SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > LONGEST_BODY:
                        return said({"error": f"body: it has more than {LONGEST_BODY:,} bytes"}, 413)
        except TimeoutError:
            return said({"error": f"body: it did not come within {SECONDS:g} seconds"}, 408)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return said(await asyncio.to_thread(demo.answer, *read_question(bytes(body))))
        except InputError as error:
            return said({"error": str(error)}, 422)
        except TimeoutError:  # Demo's, whose turn did not come, or this one's
            return said({"error": f"answer: it did not come within {ANSWER_SECONDS:g} seconds; ask again"}, 503)

    async def not_found(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = error.detail if isinstance(error, HTTPException) else "it failed; the terminal of the demo says more"
        return said({"error": f"{request.url.path}: {told}"}, status)

    routes = [Route(path, page) for path in PAGE]
    routes += [Route("/api/about", about), Route("/api/answer", answer, methods=["POST"])]
    handlers: Any = {HTTPException: not_found, Exception: not_found}
    return Starlette(routes=routes, middleware=[Middleware(_OwnHost, bind=bind)], exception_handlers=handlers)


class _OwnHost:
    """Answers only requests whose Host header names this machine."""

    def __init__(self, app: Any, bind: str):
        self.app, self.bind = app, bind

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        named = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if scope["type"] != "http" or names_this(named, self.bind):
            await self.app(scope, receive, send)
            return
        told = {"error": f"Host: {named[:100]!r} is no name of this machine"}
        await JSONResponse(told, 400, HEADERS)(scope, receive, send)


def names_this(header: str, bind: str) -> bool:
    """Whether a Host header names this machine, which listens on `bind`."""
    name = header.partition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    name = name.lower().rstrip(".")
    if name in ("localhost", "127.0.0.1", "::1", bind.lower()):
        return True
    if bind not in ANY:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in (socket.gethostname().lower(), socket.getfqdn().lower()) and bool(name)
    return True


def read_question(body: bytes) -> tuple[str, list[str]]:
    """Reads the body of a question: the text, and the names of plugins.

    Raises:
      InputError: not JSON, or a field that is missing or of another type.
    """
    try:
        asked = parse(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
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
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False, **LIMITS))
