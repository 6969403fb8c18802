"""`lsrjax serve`: its page and its JSON, asked as a browser and a program ask."""

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from programs import browser, tiny_models

pytest.importorskip("starlette")
pytest.importorskip("httpx")
from starlette.testclient import TestClient  # noqa: E402

import lsrjax  # noqa: E402
from lsrjax.cli import index, search_page, serve  # noqa: E402
from lsrjax.retrieval.text_search import TextSearch  # noqa: E402

EVIL = "<img src=x onerror=alert(1)><script>document.title='taken'</script>"
TEXTS = {
    "boot": "the boot loader of a computer",
    f"evil{EVIL}": f"a mouse {EVIL} driver",
    "cat": "猫 и мышь",
    "pie": "red apple pie",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "distill"
    return tiny_models.save(path, "milco", lexecho=True)


@pytest.fixture(scope="module")
def session(folder):
    model = lsrjax.load(str(folder), batch_size=2)
    return TextSearch(model.index(TEXTS), model.searcher)


@pytest.fixture(scope="module")
def client(session):
    app = search_page.SearchPage(session).app(["127.0.0.1"])
    return TestClient(app, base_url="http://127.0.0.1")


def tags(text):
    """The elements that a browser makes of a page."""
    found = set()
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.add(tag)
    parser.feed(text)
    return found


def test_the_api_says_what_the_search_finds(client, session):
    found = client.get("/api/search", params={"q": "boot loader", "depth": 3}).json()
    (hits,) = session.search(["boot loader"], 3)
    assert [one["id"] for one in found["hits"]] == [hit.id for hit in hits]
    assert found["query"] == "boot loader"
    for one, hit in zip(found["hits"], hits, strict=True):
        assert one["score"] == pytest.approx(hit.score, rel=1e-6)
        assert one["text"] == TEXTS[hit.id]
        parts = [match["score"] for match in one["matches"]]
        assert sum(parts) == pytest.approx(hit.score, rel=1e-4)
    assert found["encoding_ms"] > 0 and found["searching_ms"] > 0
    # The terms that matched are among the query's, with the weights they have there.
    assert [*found["terms"]] == ["pivot", "source"]
    strongest = {term: w for terms in found["terms"].values() for term, w in terms}
    for match in found["hits"][0]["matches"]:
        if match["term"] in strongest:
            assert match["query"] == pytest.approx(strongest[match["term"]])
    for terms in found["terms"].values():
        weights = [weight for _, weight in terms]
        assert weights == sorted(weights, reverse=True) and len(weights) <= 12


@pytest.mark.parametrize("head", ["dense", "colbert", "m3"])
def test_the_api_answers_for_embeddings(head, tmp_path):
    path = tiny_models.save(tmp_path / "only", head, embedding_size=5)
    model = lsrjax.load(str(path), batch_size=2)
    asked = search_page.SearchPage(TextSearch(model.index(TEXTS), model.searcher))
    client = TestClient(asked.app(["127.0.0.1"]), base_url="http://127.0.0.1")
    for hit in client.get("/api/search", params={"q": "a mouse"}).json()["hits"]:
        parts = [match["score"] for match in hit["matches"]]
        assert sum(parts) == pytest.approx(hit["score"], rel=1e-4)


def test_the_page_shows_documents_terms_and_times(client):
    page = client.get("/", params={"q": "  boot\n loader "})
    assert page.status_code == 200
    assert 'value="boot loader"' in page.text
    assert "<bdi>boot</bdi>" in page.text and TEXTS["boot"] in page.text
    assert re.search(r"4 documents, encoded in [\d.]+ ms, searched in", page.text)
    assert 'class="view">pivot' in page.text
    empty = client.get("/")
    assert "Search 4 documents in any language" in empty.text
    assert "encoded in" not in empty.text


def test_texts_and_queries_are_never_markup(client):
    for query in ("a mouse", f'{EVIL}"><script>'):
        page = client.get("/", params={"q": query})
        assert "script" not in tags(page.text) and "img" not in tags(page.text)
        assert "&lt;script&gt;" in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy
    found = client.get("/api/search", params={"q": "a mouse"})
    assert found.headers["Content-Type"] == "application/json"
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_all_terms_of_a_document_are_a_click_away(client, session):
    (hits,) = session.search(["a mouse"], 4)
    page = client.get("/", params={"q": "a mouse"})
    for hit in hits:
        assert f'href="/document?n={hit.number}"' in page.text
        found = client.get("/api/document", params={"n": hit.number}).json()
        assert (found["id"], found["text"]) == (hit.id, TEXTS[hit.id])
        assert [*found["terms"]] == ["pivot", "source"]
        weights = {
            (view, term): weight
            for view, terms in found["terms"].items()
            for term, weight in terms
        }
        # All of the document's, and those that matched among them as they were.
        vector = session.index.engine.vectors(np.array([hit.number]))
        assert len(weights) == vector.nnz
        for match in hit.matches:
            own = weights[match.view, match.document_term or match.term]
            assert own == pytest.approx(match.document)
        shown = client.get("/document", params={"n": hit.number})
        assert shown.status_code == 200
        assert "script" not in tags(shown.text) and "img" not in tags(shown.text)
        assert f"pivot, {len(found['terms']['pivot']):,} terms" in shown.text


@pytest.mark.parametrize("n", ["", "-1", "4", "x", "²", "9" * 50])
def test_documents_that_there_are_not(client, n):
    found = client.get("/api/document", params={"n": n})
    assert found.status_code == 400 and "it has to be" in found.json()["error"]
    assert client.get("/document", params={"n": n}).status_code == 400


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"q": "x" * 1001}, "1,001 characters"),
        ({"q": "a", "depth": "101"}, "1 to 100"),
        ({"q": "a", "depth": "0"}, "1 to 100"),
        ({"q": "a", "depth": "²"}, "1 to 100"),
        ({"q": "a", "depth": "9" * 5000}, "1 to 100"),
        ({"q": " "}, "q is missing"),
    ],
)
def test_what_is_asked_has_bounds(client, params, message):
    found = client.get("/api/search", params=params)
    assert found.status_code == 400 and message in found.json()["error"]
    page = client.get("/", params=params)
    assert page.status_code == (200 if not params["q"].strip() else 400)


def test_only_known_hosts_and_ways_of_asking_are_answered(client):
    for host, status in [("127.0.0.1:8000", 200), ("evil.example", 400), ("", 400)]:
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == status, host
    assert client.post("/").status_code == 405
    assert client.get("/../etc/passwd").status_code == 404


def test_mistakes_say_what_to_do(capsys, monkeypatch):
    args = ["--index", "none", "--model", "none"]
    for more, message in [
        (["--port", "99999"], "cannot be used"),
        (["--port", "0", "--rank", "x.trec"], "give --queries FILE"),
    ]:
        with pytest.raises(SystemExit):
            serve.main([*args, *more])
        assert message in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        serve.main(args)
    assert "pip install 'lsrjax[serve]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@browser.needed
def test_typing_in_a_browser_finds_a_document(folder, tmp_path):
    pytest.importorskip("websockets")
    pytest.importorskip("uvicorn")
    docs, out = tmp_path / "docs.jsonl", tmp_path / "docs.index"
    rows = [json.dumps({"id": key, "text": text}) for key, text in TEXTS.items()]
    docs.write_text("\n".join(rows))
    args = ["--model", str(folder), "--texts", str(docs), "--engine", "exact"]
    index.main([*args, "--out", str(out)])
    server = subprocess.Popen(
        [sys.executable, "-m", "lsrjax", "serve", "--port", "0"]
        + ["--index", str(out), "--model", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        said = server.stdout.readline()
        url = re.search(r"^4 documents on (http://127\.0\.0\.1:\d+)$", said)[1]
        with urllib.request.urlopen(f"{url}/api/search?q=a+mouse") as answer:
            first = json.load(answer)["hits"][0]
        with browser.tab(tmp_path / "browser", url) as tab:
            browser.wait(lambda: tab.value("document.activeElement.name") == "q")
            tab.type("a mouse")
            browser.wait(lambda: tab.value("document.querySelector('article') != null"))
            shown = tab.value("document.querySelector('article').innerText")
            assert first["id"] in shown and first["text"] in shown
            assert tab.value("document.title") == "a mouse - search"
            assert tab.value("document.querySelectorAll('script, img').length") == 0
            # Only the missing picture of the tab may be said.
            told = [one for one in tab.console if "favicon" not in json.dumps(one)]
            assert not told
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, -signal.SIGINT, 130)
