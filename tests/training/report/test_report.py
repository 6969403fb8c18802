"""The page about runs: what it says, what it never runs, and what a browser draws."""

import html.parser
import json
import struct

import pytest
from programs import browser

from lsrjax.cli import pictures
from lsrjax.cli import report as command
from lsrjax.config import fields
from lsrjax.errors import InputError
from lsrjax.retrieval import results_file
from lsrjax.training.report import charts, write
from lsrjax.training.report.charts import Line

EVIL = "<script>document.title='taken'</script><img src=http://x.invalid/a>&\"'"
METRICS = [
    {"step": 10, "loss": 4.0, "kl": 3.0, "active_query_terms": 30, "padding": 0.2},
    {"step": 10, "dev_nDCG@10": 0.25},
    {"step": 20, "loss": 1.5, "kl": 1.0, "active_query_terms": 12, "padding": 0.1},
    {"step": 20, "active_query_terms/de": 11, "active_query_terms/ja": 13},
    {"step": 20, "dev_nDCG@10": 0.5, "lambda_query": 0.003, "tokens_per_s": 4321},
]
RESULTS = {
    "bm25": {"en": {"nDCG@10": 0.75}, "ja": {"nDCG@10": 0.25}},
    EVIL: {"en": {"nDCG@10": 0.5, "index_bytes": 60, "document_terms": 10}},
}
BUDGETS = [
    {"budget": "top:8", "terms": 8, "bytes": 48, "values": {"en": 0.4}},
    {"budget": "all", "terms": 31, "bytes": 186, "values": {"en": 0.6}},
]
TASK = {
    "metrics": ["nDCG@10"],
    "data": {},
    "results": {"model": {"de": {"nDCG@10": 0.625}}},
    "prune_curve": {"metric": "nDCG@10", "budgets": BUDGETS, "knee": "top:8"},
}
EXAMPLE = {
    "query": f"数学 {EVIL}",
    "lang": "ja",
    "terms": {"pivot": [["puzzle", 1.5], [EVIL, 0.5]]},
    "found": [[1, f"a game {EVIL}", True], [2, "another", False]],
    "because": [["puzzle", "pivot", 2.25]],
}


def write_run(folder, lr=1e-3, stage="train"):
    (folder / stage).mkdir(parents=True)
    config = fields.get_default()
    config.optim.lr, config.tokenizer = lr, EVIL
    config.log.trackers = {"mlflow": {"uri": "https://me:secret@host"}}
    (folder / "config.json").write_text(config.to_json())
    lines = "".join(json.dumps(line) + "\n" for line in METRICS)
    # A run that is under way is writing a line.
    (folder / stage / "metrics.jsonl").write_text(lines + '{"step": 30, "lo')
    (folder / stage / "done.json").write_text('{"steps": 20}')
    texts = {"metrics": ["nDCG@10"], "data": {}, "results": RESULTS}
    tasks = {"debian/english": texts, f"beir {EVIL}": TASK}
    results_file.write(folder / "results.json", tasks)
    (folder / "examples.json").write_text(json.dumps([EXAMPLE]))
    (folder / "speed.json").write_text(json.dumps({EVIL: 1234.5}))
    return folder


class Page(html.parser.HTMLParser):
    """The elements of a page, their attributes and their text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("tr", "figure", "p", "li", "h2", "h4", "div", "footer"):
            self.text += "\n"
        if tag in ("td", "th"):
            self.text += "|"

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "one")


def page_of(*runs):
    out = runs[0].parent / "page.html"
    write.write(runs, out)
    return Page(out.read_text(encoding="utf-8")), out


def test_the_page_says_what_the_run_has_left(run):
    page, out = page_of(run)
    rows = page.text.splitlines()
    assert "|train|20|1.5|nDCG@10 0.500|4,321|10.0%|-" in rows
    assert f"|{EVIL}|.500|-" in rows and "|bm25|.750|.250" in rows
    assert f"|{EVIL}|10.0|60|1,234" in rows
    assert "|model|.625" in rows
    assert "|optim.lr|0.001" in rows and "|optim.weight_decay|0.01" not in rows
    # A tracker's options may hold a password, and stay out of attributes, too.
    assert '|log.trackers|["mlflow"]' in rows
    assert "secret" not in out.read_text(encoding="utf-8")
    for said in (
        "Loss and its parts",
        "Dev metrics: nDCG@10",
        "active query terms by language",
        f"beir {EVIL}: nDCG@10 by terms of a document, knee at top:8",
        "top:8, 0.400",
        "puzzle (pivot) 2.25",
        f"a game {EVIL} ✓",
    ):
        assert said in page.text, said


def test_nothing_of_a_run_is_more_than_text(run):
    page, _ = page_of(run)
    assert not {"script", "img", "link", "iframe", "a href"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(value.startswith("#") for value in links)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    policy = [value for name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_several_runs_are_side_by_side(tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", lr=5e-4)]
    page, _ = page_of(*runs)
    rows = page.text.splitlines()
    assert "Fields that differ between the runs" in page.text
    assert "|optim.lr|0.001|0.0005" in rows
    assert not [row for row in rows if row.startswith("|tokenizer")]
    assert f"|one, {EVIL}|.500|-" in rows and f"|two, {EVIL}|.500|-" in rows
    assert [row for row in rows if "bm25" in row] == ["|bm25|.750|.250"]
    # Each number has a chart, with a line for each run.
    assert {"one 1.5", "two 1.5"} <= set(rows)


def test_the_folder_of_an_evaluation_is_shown(tmp_path):
    results_file.write(tmp_path / "results.json", {"beir": TASK}, model="m")
    page, _ = page_of(tmp_path)
    assert "|model|.625" in page.text and "knee at top:8" in page.text


def places(chart):
    """The points of a chart's lines, in its picture."""
    paths = [e.get("d") for e in chart.find("svg").iter("path")]
    return [
        [tuple(map(float, point.split())) for point in path[1:].split("L")]
        for path in paths
    ]


def ticks(chart):
    texts = {}
    for text in chart.find("svg").iter("text"):
        texts.setdefault(text.get("class"), {})[text.text] = text
    return texts["tick up"], texts["tick"]


def test_a_line_is_where_its_axes_say():
    chart = charts.chart("t", [Line("a", [(0, 0.0), (5, 1.0), (10, 4.0)])])
    ((first, middle, last),) = places(chart)
    up, across = ticks(chart)
    for value, (_, y) in ((0, first), (1, middle), (4, last)):
        assert float(up[str(value)].get("y")) == pytest.approx(y + 4, abs=0.02)
    for value, (x, _) in ((0, first), (10, last)):
        assert float(across[str(value)].get("x")) == pytest.approx(x, abs=0.02)
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2)


def test_values_that_are_far_apart_have_a_logarithmic_scale():
    lines = [Line("a", [(1, 1e-4), (2, 1e-2)]), Line("b", [(1, 1.0), (2, 1.0)])]
    assert "log scale" not in charts.chart("t", lines).find("figcaption").text
    chart = charts.chart("t", lines, far=True)
    assert chart.find("figcaption").text == "t (log scale)"
    (low, middle), (high, _) = places(chart)
    assert middle[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.02)


def test_long_lines_are_drawn_by_means():
    points = [(float(i), float(i % 2)) for i in range(3001)]
    (line,) = places(charts.chart("t", [Line("a", points)]))
    assert 200 < len(line) <= 300
    assert len({y for _, y in line}) < 30  # 0 and 1 average out


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (4321, "4,321"), (43210, "43.2k"), (2e6, "2M")]
    + [(1e-5, "1e-5"), (1.2e-4, "1.2e-4"), (1e20, "1e20"), (-0.25, "-0.25")],
)
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_what_is_damaged_is_named(tmp_path, run):
    out = tmp_path / "page.html"
    for name, content in [
        ("examples.json", '[{"query": 1}]'),
        ("results.json", '{"bm25": {"en": 3}}'),
        ("speed.json", "[]"),
        ("config.json", "{"),
    ]:
        kept = (run / name).read_text()
        (run / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name}.* is damaged"):
            write.write([run], out)
        (run / name).write_text(kept)
    with pytest.raises(InputError, match="is no folder of a run"):
        write.write([tmp_path], out)
    assert not out.exists()


def test_a_report_that_fails_ends_no_run(run):
    said = []
    write.at_the_end(run, said.append)
    assert said == [f"Report: {run / 'report.html'}"]
    (run / "results.json").write_text("{")
    write.at_the_end(run, said.append)
    assert "could not be written" in said[1] and "results.json" in said[1]


def test_the_command(tmp_path, run, capsys, monkeypatch):
    command.main([str(run)])
    assert (run / "report.html").is_file()
    monkeypatch.setenv("PATH", str(tmp_path))
    for args, message in [
        ([run, run], "--out FILE.html"),
        ([tmp_path / "none"], "is no folder of a run"),
        ([run, "--png", tmp_path / "png"], "--png needs a browser"),
    ]:
        with pytest.raises(SystemExit):
            command.main([*map(str, args)])
        assert message in " ".join(capsys.readouterr().err.split())


@browser.needed
def test_a_browser_draws_it_without_a_complaint(tmp_path, run):
    _, out = page_of(run)
    with browser.tab(tmp_path / "browser", out.as_uri()) as tab:
        assert tab.value("document.title") == run.name  # no script has changed it
        shown = tab.value("document.body.innerText")
        assert "Loss and its parts" in shown and EVIL in shown
        assert tab.value("document.querySelector('figure svg').clientHeight") > 100
        for width in (1280, 390):  # only tables scroll sideways, not the page
            tab.resize(width)
            assert tab.value("document.documentElement.scrollWidth") <= width
        assert not tab.console


@browser.needed
@pytest.mark.slow
def test_tables_and_charts_become_pictures(tmp_path, run):
    made = [*pictures.write([run], tmp_path / "png")]
    names = {path.name for path in made}
    assert {"train-loss-and-its-parts.png", "train-dev-metrics-ndcg-10.png"} <= names
    assert "results-debian-english-ndcg-10.png" in names
    for path in made:
        start = path.read_bytes()[:24]
        assert start[1:4] == b"PNG"
        width, height = struct.unpack(">II", start[16:24])
        assert width > 200 and height > 100
