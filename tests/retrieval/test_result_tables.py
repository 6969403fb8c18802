import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from lsrjax.retrieval.result_tables import (
    markdown_table,
    print_costs,
    print_examples,
    print_table,
)

RESULTS = {
    "teacher": {"en": {"nDCG@10": 0.8}},
    "bm25": {
        "en": {"nDCG@10": 0.75},
        "de": {"nDCG@10": 0.25},
        "mean": {"nDCG@10": 0.375},
        "ja": {"nDCG@10": 0.5},
    },
    "student": {
        "en": {"nDCG@10": 0.7},
        "ja": {"nDCG@10": 0.4314},
        "de": {"nDCG@10": 1.0},
        "mean": {"nDCG@10": 0.7157},
    },
}

EXAMPLE = {
    "query": "PDF 描画ライブラリ",
    "lang": "ja",
    "terms": {
        "pivot": [("render", 2.314), ("[unused3]", 1.5)],
        "source": [("▁PDF", 1.25)],
    },
    "found": [(1, "PDF rendering library", True), (2, "PDF viewer", False)],
    "because": [("render", "pivot", 4.2), ("▁PDF", "source", 1.3)],
}


def printed(show, *, width=80, colour=False):
    file = io.StringIO()
    show(
        Console(
            file=file,
            width=width,
            force_terminal=colour,
            color_system="standard" if colour else None,
        )
    )
    return file.getvalue()


def test_costs_of_documents_are_shown_with_the_speed_of_what_is_encoded():
    results = {
        "csr": {"en": {"document_terms": 32.0, "index_bytes": 192.0}},
        "m3 tokens": {"en": {"document_terms": 40.25, "index_bytes": 2576.4}},
    }
    lines = printed(lambda console: print_costs(results, {"csr": 1234.4}, console))
    rows = [line.split() for line in lines.splitlines()[-2:]]
    assert rows == [
        ["csr", "32.0", "192", "1,234"],
        ["m3", "tokens", "40.2", "2,576", "-"],
    ]
    assert "(-: a view, whose model encodes all at once)" in " ".join(lines.split())
    untimed = printed(lambda console: print_costs(results, {}, console))
    assert "second" not in untimed
    assert [line.split() for line in untimed.splitlines()[-2:]] == [
        ["csr", "32.0", "192"],
        ["m3", "tokens", "40.2", "2,576"],
    ]


def test_table_has_systems_languages_and_the_mean_last():
    lines = printed(lambda c: print_table(RESULTS, "nDCG@10", c)).split("\n")
    assert [line.split() for line in lines if line.strip()] == [
        ["nDCG@10"],
        ["en", "de", "ja", "mean"],
        ["teacher", ".800", "-", "-", "-"],
        ["bm25", ".750", ".250", ".500", ".375"],
        ["student", ".700", "1.000", ".431", ".716"],
    ]


def test_the_best_of_a_column_is_bold():
    text = printed(lambda c: print_table(RESULTS, "nDCG@10", c), colour=True)
    bold = "\x1b[1m"
    assert all(bold + value in text for value in (".800", ".500", "1.000", ".716"))
    assert not any(bold + value in text for value in (".750", ".700", ".431", ".375"))


@pytest.mark.parametrize("width", [40, 80])
def test_many_languages_fit_the_width(width):
    languages = [f"l{i}" for i in range(16)]
    results = {
        name: {lang: {"RR": (i + 1) / 20} for i, lang in enumerate(languages)}
        for name in ("distilled student, pivot and source", "b")
    }
    text = printed(lambda c: print_table(results, "RR", c), width=width)
    assert max(map(cell_len, text.split("\n"))) <= width
    assert [word for word in text.split() if word in languages] == languages
    assert all(text.count(f".{5 * (i + 1):02d}0 ") >= 2 for i in range(16))


def test_markdown():
    assert markdown_table(RESULTS, "nDCG@10") == (
        "| nDCG@10 | en | de | ja | mean |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| teacher | **.800** | - | - | - |\n"
        "| bm25 | .750 | .250 | **.500** | .375 |\n"
        "| student | .700 | **1.000** | .431 | **.716** |\n"
    )


def test_a_single_system_has_no_best():
    table = markdown_table({"a|b": {"de": {"RR": 0.5}}}, "RR")
    assert table.endswith("| a\\|b | .500 |\n")


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no system has 'RR'.*nDCG@10"):
        markdown_table(RESULTS, "RR")


def test_example_shows_query_terms_documents_and_why():
    lines = printed(lambda c: print_examples(c, [EXAMPLE])).split("\n")
    for expected in (
        ["ja"],
        ["query", "PDF 描画ライブラリ"],
        ["pivot terms", "render", "2.31", "[unused3]", "1.50"],
        ["source terms", "▁PDF", "1.25"],
        ["found 1", "✓ PDF rendering library"],
        ["found 2", "  PDF viewer"],
        ["why found 1", "render", "pivot 4.20", "▁PDF", "source 1.30"],
    ):
        assert any(all(part in line for part in expected) for line in lines), expected
    assert sum("✓" in line for line in lines) == 1


@pytest.mark.parametrize("width", [30, 80])
def test_examples_fit_the_width(width):
    example = {
        **EXAMPLE,
        "query": "描画" * 60,
        "terms": {"pivot": [("term", 1.0)] * 40},
        "found": [(1, "unbroken" * 30 + "\x1b[31m\nred", False)],
    }
    text = printed(lambda c: print_examples(c, [example]), width=width)
    assert max(map(cell_len, text.split("\n"))) <= width
    assert "\x1b" not in text
    squeezed = text.replace("│", "").split()
    assert "not among the first 1" in " ".join(squeezed)
    assert text.count("描") == 60


def test_example_without_an_explanation():
    example = {key: value for key, value in EXAMPLE.items() if key != "because"}
    assert "why" not in printed(lambda c: print_examples(c, [example]))
