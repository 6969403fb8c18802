"""Rows with too few documents: told before one is drawn, or repeated."""

import json

import numpy as np
import pytest

from lsrjax.cli import doctor_checks
from lsrjax.config.fields import get_default
from lsrjax.data import sources
from lsrjax.data.batching.negatives import Choice, sampler
from lsrjax.data.examples import Group, InMemory
from lsrjax.data.reading import bad_records
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.data.sources import WithNegatives
from lsrjax.errors import InputError
from lsrjax.training import stage_data

COUNT = 40


def row(i, negatives=2, **fields):
    return {
        "query": f"query {i}",
        "pos": [f"positive {i}"],
        "neg": [f"negative {i} {j}" for j in range(negatives)],
    } | fields


def stage(tmp_path, rows, **fields):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = get_default()
    config.data.source.files, config.data.group_size = str(path), 3
    config.data.bad_records = 0.05
    config.loss = {"infonce": {}}
    for field, value in fields.items():
        config.data[field] = value
    return config


def opened(config, folder, kind="group"):
    bad_records.merge(folder)
    bad = BadRecords(folder)
    sets = stage_data.open_sets(config, kind, folder, bad)
    return sets[0], bad


def named(folder):
    lines = (folder / bad_records.FILE).read_text().splitlines()
    return {entry["index"]: entry["kind"] for entry in map(json.loads, lines)}


def test_a_short_row_is_a_bad_record_before_the_first_step(tmp_path):
    config = stage(tmp_path, [row(i, 1 if i == 17 else 2) for i in range(COUNT)])
    source, bad = opened(config, tmp_path)
    assert named(tmp_path) == {17: "too few negatives"}
    entry = json.loads((tmp_path / bad_records.FILE).read_text())
    assert entry["line"] == 18 and entry["file"].endswith("rows.jsonl")
    assert "1 negatives, but a group of 3 documents needs 2" in entry["reason"]
    assert source[17].id == source[entry["replaced_by"]].id
    assert "1 bad record was replaced (1 too few negatives)" in bad.summary()


def test_more_short_rows_than_allowed_are_refused_at_the_start(tmp_path):
    config = stage(tmp_path, [row(i, 1 if i % 5 == 4 else 2) for i in range(COUNT)])
    with pytest.raises(InputError, match=r"^8 bad records \(8 too few neg.* allows 2:"):
        opened(config, tmp_path)


def test_other_bad_rows_are_found_then_too(tmp_path):
    rows = [row(i) for i in range(COUNT)]
    rows[39]["query"] = " "
    opened(stage(tmp_path, rows), tmp_path)
    assert named(tmp_path) == {39: "empty text"}


def test_rows_of_ids_are_counted_without_their_texts(tmp_path, monkeypatch):
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\ttext {i}\n" for i in range(9)))
    rows = [
        {
            "query": "q",
            "positive_document_ids": [0],
            "negative_document_ids": [1, 2][: 1 if i == 3 else 2],
        }
        for i in range(COUNT)
    ]
    asked = []
    real = sources.Corpus.get
    monkeypatch.setattr(
        sources.Corpus,
        "get",
        lambda self, key, where: asked.append(key) or real(self, key, where),
    )
    config = stage(tmp_path, rows, corpus=str(tmp_path / "docs.tsv"))
    opened(config, tmp_path)
    assert named(tmp_path) == {3: "too few negatives"}
    assert len(asked) < 10  # of the bad row and of its replacement


def test_scores_that_leave_too_few_are_counted(tmp_path):
    rows = [
        row(i, pos_scores=[3.0], neg_scores=[1.0, 4.0 if i == 8 else 2.0])
        for i in range(COUNT)
    ]
    config = stage(tmp_path, rows, negative_margin=0.5)
    opened(config, tmp_path)
    assert named(tmp_path) == {8: "too few negatives"}


def test_documents_in_too_few_languages_are_counted(tmp_path):
    lines = [f"{i}\ttext {i}\n" for i in range(9)]
    (tmp_path / "en.tsv").write_text("".join(lines))
    (tmp_path / "de.tsv").write_text("".join(lines[:5]))
    rows = [
        {
            "query": "q",
            "positive_document_ids": [7 if i == 21 else 0],
            "negative_document_ids": [1, 2],
        }
        for i in range(COUNT)
    ]
    config = stage(
        tmp_path,
        rows,
        corpus={"en": f"{tmp_path}/en.tsv", "de": f"{tmp_path}/de.tsv"},
        mixing="round_robin",
        document_languages={"en": 1, "de": 1},
    )
    source, _ = opened(config, tmp_path)
    # Which languages a text has shows when it is looked up.
    assert source[21].positives[0].keys() == {"en", "de"}
    assert named(tmp_path) == {21: "missing language"}


def test_scores_made_by_the_teacher_may_leave_too_few(tmp_path):
    groups = [
        Group(str(i), {"en": "q"}, [{"en": "p"}], [{"en": "a"}, {"en": "b"}])
        for i in range(COUNT)
    ]
    scores = np.tile(np.float32([3, 1, 2]), (COUNT, 1))
    scores[5, 2] = 9
    corpus, negatives = [{"en": "a"}, {"en": "b"}], np.tile([0, 1], (COUNT, 1))
    scored = WithNegatives(InMemory(groups), corpus, negatives, scores)
    config = stage(tmp_path, [], negative_margin=0.5)
    check = stage_data.documents(config, config.data.group_size, own=True)
    bad = BadRecords(tmp_path)
    source = stage_data.guarded(config, bad, scored, "", True, check)
    source.look_through()
    assert named(tmp_path) == {5: "too few negatives"}
    assert source[5].id != "5"


def test_negatives_are_repeated_where_asked(tmp_path):
    """Drawn with replacement, each as likely as any other; none stays an error."""
    rows = [row(i, 2 if i else 0) for i in range(COUNT)]
    config = stage(tmp_path, rows, group_size=8, short_rows="repeat")
    source, _ = opened(config, tmp_path)
    assert named(tmp_path) == {0: "too few negatives"}
    choice, rng = Choice(short="repeat"), np.random.default_rng(0)
    drawn = np.array([choice(source[1], 8, rng) for _ in range(3000)])
    assert (drawn[:, 0] == 0).all() and set(drawn[:, 1:].ravel()) == {1, 2}
    # Binomial, as with replacement: mean 7 / 2, variance 7 / 4.
    ones = (drawn[:, 1:] == 1).sum(axis=1)
    assert abs(ones.mean() - 3.5) < 0.1 and abs(ones.var() - 1.75) < 0.2


@pytest.mark.parametrize("negatives", ["random", "top", "rank"])
def test_rows_with_enough_are_drawn_as_before(negatives):
    group = Group("a", {}, [{}], [{}] * 9)
    for seed in range(9):
        first, second = (
            Choice(sampler(negatives), short=short)(
                group, 8, np.random.default_rng(seed)
            )
            for short in ("bad", "repeat")
        )
        assert first == second and len(set(first)) == 8


def test_the_doctor_counts_them(tmp_path):
    rows = [row(i, 1 if i == 17 else 2) for i in range(COUNT)]
    (found,) = doctor_checks.data(stage(tmp_path, rows))
    assert found.level == doctor_checks.WARNING
    assert "1 bad record was replaced (1 too few negatives)" in found.text
    assert "row 17" in found.text and "40 examples" in found.text
    rows = [row(i, 1) for i in range(COUNT)]
    (found,) = doctor_checks.data(stage(tmp_path, rows))
    assert found.level == doctor_checks.ERROR
    assert "None of the 40 records of config.data has enough negatives" in found.text
    (found,) = doctor_checks.data(stage(tmp_path, [row(0)]))
    assert found.level == doctor_checks.OK


@pytest.mark.parametrize("format", ["milco", "triplet"])
def test_missing_scores_say_how_to_get_them(tmp_path, format):
    """And not to allow more bad records."""
    config = stage(tmp_path, [], group_size=2)
    rows = [row(i) for i in range(COUNT)]
    if format == "triplet":
        rows = [{"anchor": "a", "positive": "p", "negative": "n"}] * COUNT
    config = stage(tmp_path, rows, group_size=2)
    config.loss = {"kl": {}}
    with pytest.raises(InputError) as error:
        opened(config, tmp_path)
    said = str(error.value)
    assert "without a teacher's scores" in said and "rows.jsonl" in said
    assert "config.prepare.scores = 'teacher' and config.teacher.model" in said
    assert "bad_records" not in said


def test_changed_data_is_accepted_for_its_own(tmp_path):
    config = stage(tmp_path, [row(i, 1 if i < 2 else 2) for i in range(COUNT)])
    opened(config, tmp_path)
    assert named(tmp_path) == dict.fromkeys(range(2), "too few negatives")
    config = stage(tmp_path, [row(i) for i in range(COUNT)])
    with pytest.raises(InputError, match=r"rows\.jsonl has grown.*(?s:.*)--accept_ch"):
        opened(config, tmp_path)
    (said,) = stage_data.accept_changed(config, "group", tmp_path)
    assert "rows.jsonl has grown" in said
    _, bad = opened(config, tmp_path)
    assert bad.summary() == ""
    assert stage_data.accept_changed(config, "group", tmp_path) == []
