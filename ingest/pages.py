"""`/openapi.json`, `/docs` and what they need: nothing comes from another host.

Swagger UI's files are those of the package `flask_swagger_ui`, which is not imported: only its
folder is looked up. They are read when first asked for, and sent in parts, so that a slow reader
keeps a part in memory and not a file.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from ingest.answers import JSON, Answer, Headers, problem
from ingest.exchange import Receive, Scope, Send, deliver, header, unless_known, with_etag
from ingest.problems import NO_SUCH_PATH, PROBLEMS
from ingest.stock import location

PACKAGE = "flask_swagger_ui"
PART_BYTES = 64 * 1024
TYPES = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8",
         ".png": b"image/png"}  # fmt: skip
SCRIPTS = ("swagger-ui-bundle.js", "start.js")
FILES = ("swagger-ui.css", "favicon-32x32.png", *SCRIPTS)
START = b"""\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""

# React sets styles by script, which needs no permission; icons lie in the style sheet as data.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    b" connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
# Pages name each file with its hash, so it never changes under its name.
FOR_EVER = (b"cache-control", b"public, max-age=31536000, immutable")


class OpenAPI:
    """`GET /openapi.json`; `make` is called when it is first asked for, in a thread: orders go
    on meanwhile."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self._content: bytes | None = None

    async def __call__(self, scope: Scope, _receive: Receive) -> Answer:
        if self._content is None:
            self._content = await asyncio.to_thread(lambda: msgspec.json.encode(self._make()))
        headers = (*JSON, (b"cache-control", b"no-cache"))
        return unless_known(scope, with_etag(Answer(200, headers, self._content)))


async def root(_scope: Scope, _receive: Receive) -> Answer:
    """`GET /`."""
    return Answer(307, location("/docs"), b"")


async def docs(_scope: Scope, _receive: Receive) -> Answer:
    """`GET /docs`."""
    scripts = "".join(f'<script src="{_versioned(name)}"></script>' for name in SCRIPTS)
    return _page("Rasher", f'<div id="swagger-ui"></div>{scripts}')


async def problems(_scope: Scope, _receive: Receive) -> Answer:
    """`GET /docs/problems`: where the types of problems lead to."""
    sections = "".join(
        f'<h2 id="{one.name}">{one.name}</h2><p><b>{one.status} {_text(one.title)}.</b>'
        f" {_text(one.when)}</p><p>{_text(one.remedy)}</p>"
        for one in PROBLEMS
    )
    return _page(
        "Rasher: problems",
        f'<div class="swagger-ui"><div class="wrapper"><div class="info renderedMarkdown">'
        f'<h1>Problems</h1><p><a href="/docs">All calls</a></p>{sections}</div></div></div>',
    )


async def asset(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of `GET /docs/assets/{name}`."""
    name = scope["path_params"]["name"]
    if name not in FILES:
        await deliver(problem(NO_SUCH_PATH, f"no file {name[:100]}"), receive, send)
        return
    content, tag = _file(name)
    headers = [FOR_EVER, (b"etag", b'"%s"' % tag), (b"x-content-type-options", b"nosniff")]
    if b'"%s"' % tag in (header(scope, b"if-none-match") or b""):
        await deliver(Answer(304, tuple(headers), b""), receive, send)
        return
    headers.append((b"content-type", TYPES[Path(name).suffix]))
    headers.append((b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for place in range(0, len(content), PART_BYTES):
        part = content[place : place + PART_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _page(title: str, body: str) -> Answer:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="{_versioned("swagger-ui.css")}">'
        f'<link rel="icon" type="image/png" href="{_versioned("favicon-32x32.png")}">'
        f"</head><body>{body}</body></html>"
    )
    return Answer(200, PAGE, text.encode())


def _text(sentence: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence))


def _versioned(name: str) -> str:
    return f"/docs/assets/{name}?v={_file(name)[1].decode()}"


@cache  # of four names
def _file(name: str) -> tuple[bytes, bytes]:
    """A file and what tells its versions apart."""
    content = START if name == "start.js" else (_folder() / name).read_bytes()
    return content, blake2b(content, digest_size=8).hexdigest().encode()


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "dist"
