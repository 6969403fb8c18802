"""The page of `lsrjax serve`: a form, what was found and why, and the same as JSON.

Pages are made here and hold no script. Texts of the index and of queries, and names of
terms, become text in elements, never markup.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lsrjax.errors import InputError
from lsrjax.retrieval.text_search import Hit, TextSearch
from lsrjax.training.report import page
from lsrjax.training.report.elements import Element, tag

_LONGEST = 1_000  # characters of a query
_DEPTH, _DEEPEST = 10, 100
_TERMS = 12  # shown of each view
_SHOWN = 600  # characters of a document
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'; base-uri 'none'",
}
_STYLE = """
body { max-width: 860px; }
form { display: flex; gap: .5rem; margin: 0 0 1rem; }
input { flex: 1; min-width: 0; padding: .6rem .8rem; font: inherit; font-size: 1.05rem;
        border: 1px solid var(--edge); border-radius: 8px; background: var(--box);
        color: var(--text); }
button { padding: .6rem 1.1rem; font: inherit; border: 0; border-radius: 8px;
         background: var(--c0); color: var(--page); cursor: pointer; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--c0);
                                            outline-offset: 2px; }
article { padding: .8rem 0; border-top: 1px solid var(--edge); }
article h2 { all: unset; font-weight: 600; }
article .text { margin: .2rem 0 .4rem; }
.said { color: var(--soft); font-size: .85rem; }
"""


class SearchPage:
    """An index on a page."""

    def __init__(self, session: TextSearch):
        self._session = session
        # Requests come from several threads; engines take one at a time.
        self._alone = threading.Lock()

    def app(self, hosts: Sequence[str]) -> Starlette:
        """The application.

        Args:
          hosts: names that a request may be to. Others are refused, so that no page
            elsewhere can read this one through a name of its own for this machine.
        """
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/document", self._document_page),
                Route("/api/search", self._json),
                Route("/api/document", self._document_json),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts]),
            ],
        )

    def answer(self, query: str, depth: int) -> dict[str, Any]:
        """What is found for a query, as the API says it.

        Returns:
          `query`, `encoding_ms`, `searching_ms`; `terms` of the query by view; `hits`
          with `number`, `id`, `score`, `text` and `matches`.
        """
        with self._alone:
            found = self._session.ranked([query], depth)
            (hits,) = self._session.described([query], found)
            terms = self._session.strongest(found, 0, _TERMS)
        return {
            "query": query,
            "encoding_ms": round(1000 * found.encoding, 3),
            "searching_ms": round(1000 * found.searching, 3),
            "terms": terms,
            "hits": [_as_json(hit) for hit in hits],
        }

    def document(self, number: int) -> dict[str, Any]:
        """A document as the API says it: `number`, `id`, `text`, all `terms` by view.

        Raises:
          InputError: the index has no such document.
        """
        index = self._session.index
        if not 0 <= number < len(index):
            raise InputError(f"n is {number}; it has to be 0 to {len(index) - 1}.")
        with self._alone:
            return {
                "number": number,
                "id": index.ids[number],
                "text": index.texts[number] if index.texts else None,
                "terms": self._session.document_terms(number),
            }

    def _json(self, request: Request) -> Response:
        def answered() -> dict[str, Any]:
            query, depth = _asked(request)
            if not query:
                raise InputError("q is missing: /api/search?q=TEXT&depth=10")
            return self.answer(query, depth)

        return _as_response(answered)

    def _document_json(self, request: Request) -> Response:
        return _as_response(lambda: self.document(_number(request)))

    def _document_page(self, request: Request) -> Response:
        try:
            found = self.document(_number(request))
            title, said, status = found["id"], list(_whole(found)), 200
        except InputError as error:
            title, status = "No document", 400
            said = [tag("p", str(error), role="alert")]
        html = page.document(
            title, tag("style", _STYLE), tag("main", said), policy=_POLICY
        )
        return HTMLResponse(html, status, headers=_HEADERS)

    def _page(self, request: Request) -> Response:
        query, said, status = "", [], 200
        try:
            query, depth = _asked(request)
            if query:
                said = list(_answer(self.answer(query, depth)))
        except InputError as error:
            said, status = [tag("p", str(error), role="alert")], 400
        count = f"{len(self._session.index):,} documents"
        field = tag(
            "input",
            name="q",
            value=query,
            dir="auto",
            maxlength=_LONGEST,
            placeholder=f"Search {count} in any language",
            aria_label="query",
            autocomplete="off",
            autofocus="autofocus",
        )
        form = tag("form", field, tag("button", "Search"), action="/", role="search")
        style = tag("style", _STYLE)
        title = f"{query} - search" if query else f"Search {count}"
        html = page.document(title, style, form, tag("main", said), policy=_POLICY)
        return HTMLResponse(html, status, headers=_HEADERS)


def _asked(request: Request) -> tuple[str, int]:
    """The query, maybe empty, and how many documents of it."""
    query = " ".join(request.query_params.get("q", "").split())
    if len(query) > _LONGEST:
        raise InputError(
            f"The query has {len(query):,} characters; {_LONGEST:,} is the most."
        )
    given = request.query_params.get("depth", str(_DEPTH))
    depth = (
        int(given) if given.isascii() and given.isdecimal() and len(given) < 9 else 0
    )
    if not 1 <= depth <= _DEEPEST:
        raise InputError(f"depth is {given[:20]!r}; it has to be 1 to {_DEEPEST}.")
    return query, depth


def _as_response(answered: Callable[[], dict[str, Any]]) -> Response:
    try:
        return JSONResponse(answered(), headers=_HEADERS)
    except InputError as error:
        return JSONResponse({"error": str(error)}, 400, headers=_HEADERS)


def _number(request: Request) -> int:
    given = request.query_params.get("n", "")
    if given.isascii() and given.isdecimal() and len(given) < 12:
        return int(given)
    raise InputError(f"n is {given[:20]!r}; it has to be the number of a document.")


def _whole(found: dict[str, Any]) -> Iterator[Element]:
    yield tag("h2", tag("bdi", found["id"]))
    if found["text"]:
        yield tag("p", found["text"], class_="text", dir="auto")
    for view, terms in found["terms"].items():
        heading = tag("span", f"{view}, {len(terms):,} terms ", class_="view")
        yield tag("p", heading, page.chips(terms))


def _as_json(hit: Hit) -> dict[str, Any]:
    matches = [dataclasses.asdict(one) | {"score": one.score} for one in hit.matches]
    own = {"number": hit.number, "id": hit.id, "score": hit.score, "text": hit.text}
    return own | {"matches": matches}


def _answer(found: dict[str, Any]) -> Iterator[Element]:
    for view, terms in found["terms"].items():
        yield tag("p", tag("span", f"{view} ", class_="view"), page.chips(terms))
    yield tag(
        "p",
        f"{len(found['hits'])} documents, encoded in {found['encoding_ms']:.1f} ms,"
        f" searched in {found['searching_ms']:.1f} ms",
        class_="said",
    )
    shown = bool(found["terms"])
    yield from (_hit(rank, hit, shown) for rank, hit in enumerate(found["hits"], 1))


def _hit(rank: int, hit: dict[str, Any], terms: bool) -> Element:
    """A document; with `terms`, a link to all of its own."""
    text = hit["text"]
    if text and len(text) > _SHOWN:
        text = f"{text[:_SHOWN]} …"
    return tag(
        "article",
        tag("h2", f"{rank}. ", tag("bdi", hit["id"])),
        tag("span", f" {hit['score']:.4g} ", class_="said"),
        tag("a", "all terms", href=f"/document?n={hit['number']}", class_="said")
        if terms
        else None,
        tag("p", text, class_="text", dir="auto") if text else None,
        _why(hit["matches"]),
    )


def _why(matches: Sequence[dict[str, Any]]) -> list[Element]:
    made = []
    for view in dict.fromkeys(match["view"] for match in matches):
        own = [match for match in matches if match["view"] == view]
        total = sum(match["score"] for match in own)
        shown = page.chips([(_named(match), match["score"]) for match in own[:_TERMS]])
        more = f" and {len(own) - _TERMS} more" if len(own) > _TERMS else None
        heading = tag("span", f"{view} {total:.4g} ", class_="view")
        made.append(tag("p", heading, shown, more))
    return made


def _named(match: dict[str, Any]) -> str:
    other = match["document_term"]
    return f"{match['term']} ~ {other}" if other else match["term"]
