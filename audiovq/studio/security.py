"""Who may use a studio: checks before every request, and headers of every answer. A page elsewhere cannot drive the
studio: it has another origin, and a name that it makes point to this machine is not an allowed host. Bodies are
limited before anything reads them, but for uploads, which are limited as they arrive."""

import asyncio
import hmac
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 1 << 20
UPLOAD = re.compile(r"^/api/projects/(import|[^/]+/recordings)$")
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")  # what a foreign page may send
SAFE = ("GET", "HEAD")
COOKIE_SECONDS, MOST_SESSIONS, LONGEST_WAIT = 365 * 24 * 3600, 10_000, 60.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; worker-src 'self' blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOGIN_PAGE = Path(__file__).parent / "assets" / "login.html"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass
class Access:
    host: str  # the address that the server listens on
    password: str | None = None  # None admits everybody who can reach it
    names: Iterable[str] = ()  # more host names that it is reached by, such as that of a proxy
    sessions: dict[str, None] = field(default_factory=dict)
    failures: dict[str, tuple[int, float]] = field(default_factory=dict)  # by client: how many, no try before

    @property
    def is_local(self) -> bool:
        """Whether all visitors are the owner of this machine, to whom all projects belong."""
        return is_loopback(self.host)

    def allows_host(self, header: str) -> bool:
        """Names that only this machine has, or addresses: a foreign name may be made to point here."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if is_loopback(name) or name in self.names:
            return True
        if self.is_local:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name in {part.lower() for part in (socket.gethostname(), socket.getfqdn(), self.host)}

    def enter(self, client: str, password: str) -> tuple[str | None, str]:
        """A new session, or None and what to say. After each failure a client waits twice as long as before."""
        count, until = self.failures.get(client, (0, 0.0))
        if (wait := until - time.monotonic()) > 0:
            return None, f"Too many wrong passwords. Try again in {wait:.0f} s."
        if hmac.compare_digest(password.encode(), (self.password or "").encode()):
            self.failures.pop(client, None)
            session = secrets.token_urlsafe(24)
            self.sessions[session] = None
            if len(self.sessions) > MOST_SESSIONS:
                del self.sessions[next(iter(self.sessions))]
            return session, ""
        if len(self.failures) > MOST_SESSIONS:
            self.failures.clear()
        self.failures[client] = (count + 1, time.monotonic() + min(2.0**count, LONGEST_WAIT))
        return None, "The password is wrong."


class Guard:
    """Middleware with all checks. A visitor is in `request.state.visitor`: "" on one's own machine."""

    def __init__(self, app: ASGIApp, access: Access, stall_seconds: float):
        self.app, self.access, self.stall_seconds = app, access, stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        visitor = request.cookies.get("audiovq-visitor", "")
        is_new = not re.fullmatch(r"[\w-]{24,64}", visitor, re.ASCII)
        visitor = secrets.token_urlsafe(24) if is_new else visitor

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
                if is_new and not self.access.is_local:
                    headers.append("Set-Cookie", _cookie("audiovq-visitor", visitor))
            await send(message)

        refusal, is_http = self._refusal(request), scope["type"] == "http"
        if refusal is not None and not is_http:
            await send({"type": "websocket.close"})  # which is an answer with the status 403
            return
        if refusal is None and is_http and scope["method"] not in SAFE and not UPLOAD.match(request.url.path):
            try:
                receive = await asyncio.wait_for(_read(Request(scope, receive)), self.stall_seconds)
            except (asyncio.TimeoutError, ClientDisconnect):
                refusal = error("the request did not arrive in time", 408)
            except ValueError as problem:
                refusal = error(str(problem), 413)
        if refusal is None and is_http and self.access.password is not None and request.url.path == "/login":
            refusal = await self._login(Request(scope, receive))
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        scope.setdefault("state", {})["visitor"] = "" if self.access.is_local else visitor
        await self.app(scope, receive, answer)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        host, origin, path = request.headers.get("host", ""), request.headers.get("origin"), request.url.path
        if not self.access.allows_host(host):
            return error("this name is not one of this studio's: use the address that it printed", 403)
        if request.scope.get("method") not in SAFE:  # as also a websocket, which has none
            if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
                return error("this request comes from another page, which may not use this studio", 403)
            kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
            if kind in FORMS and path != "/login":
                return error("expected the content type application/json, or that of the file that is sent", 415)
        if self.access.password is not None and request.cookies.get("audiovq-session") not in self.access.sessions:
            if path == "/":
                return RedirectResponse("login", 303)
            if path != "/login":
                return error("please enter the password first", 401)
        return None

    async def _login(self, request: Request) -> Response:
        page = LOGIN_PAGE.read_text("utf-8")
        if request.method != "POST":
            return HTMLResponse(page.replace("MESSAGE", ""))
        given = parse_qs((await request.body()).decode(errors="replace")).get("password", [""])[0]
        session, message = self.access.enter(request.client.host if request.client else "", given)
        if session is None:
            return HTMLResponse(page.replace("MESSAGE", message), 403 if "wrong." in message else 429)
        answer = RedirectResponse("./", 303)
        answer.headers.append("Set-Cookie", _cookie("audiovq-session", session))
        return answer


def error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _cookie(name: str, value: str) -> str:
    return f"{name}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={COOKIE_SECONDS}"


async def _read(request: Request) -> Receive:
    """The whole body, which is given again as one message. Raises ValueError if it is too large."""
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > LARGEST_BODY:
            raise ValueError(f"the request is too large; at most {LARGEST_BODY >> 20} MB are read")
    whole: list[Message] = [{"type": "http.request", "body": bytes(content), "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await request.receive()

    return again
