"""Sets with different numbers of documents a query, in turns."""

import functools
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from lsrjax.config.check_run import validate
from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching.drawing import GroupBatches
from lsrjax.data.batching.loader import Batches
from lsrjax.data.batching.mixing import Concatenated, MixedOrder
from lsrjax.data.batching.turns import Turns
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, InMemory
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError
from lsrjax.training import run

SIZES = (3, 1, 3)


def some(name, count, words):
    text = " ".join(["file"] * words)
    return InMemory(
        [
            Group(
                f"{name} {i}",
                {"en": f"{name} {i}"},
                [{"en": f"{text} {name} {i}"}],
                [{"en": f"{text} network {j}"} for j in range(4)],
            )
            for i in range(count)
        ]
    )


@pytest.fixture(scope="module")
def parts():
    sets = [some("library", 24, 2), some("kernel", 16, 20), some("font", 20, 5)]
    order = MixedOrder([24, 16, 20], 4, 0, weights=[1, 1, 1], one=True)
    field = TextField(TextTokenizer(embedded.ENGLISH_TOKENIZER), 24)

    def make(size, own, devices=1):
        build = GroupBatches(
            query=field,
            document=field,
            group_size=size,
            mixing="passages",
            query_languages={ANY: 1.0},
            document_languages={ANY: 1.0},
            with_scores=False,
            with_keys=True,
        )
        return Batches(
            Concatenated(sets), order, build, multiple=4, devices=devices, own=own
        )

    return order, make


def test_a_batch_is_that_of_its_set_alone(parts):
    order, make = parts
    turns, sizes = Turns(order, SIZES, make), set()
    for index in range(12):
        size = SIZES[order.set_of_batch(index)]
        alone = make(
            size, lambda batch, size=size: SIZES[order.set_of_batch(batch)] == size
        )
        jax.tree.map(np.testing.assert_array_equal, turns[index], alone[index])
        assert turns[index]["targets"]["document_key"].shape == (4, size, 2)
        assert turns.examples(index) == alone.examples(index)
        starts = np.cumsum([0, 24, 16, 20])
        sets = np.searchsorted(starts, turns.examples(index), side="right") - 1
        assert set(sets) == {order.set_of_batch(index)}
        sizes.add(size)
    assert sizes == {1, 3} and turns.left_together == 0


def test_shapes_are_fitted_to_the_batches_of_each_size(parts):
    """Not to the other sets', whose texts have other lengths."""
    order, make = parts
    turns = Turns(order, SIZES, make)
    found = {1: set(), 3: set()}
    for index in range(30):
        shape = tuple(part["ids"].shape for part in turns[index]["student"]["parts"])
        found[SIZES[order.set_of_batch(index)]].add(shape)
    counts = {size: {sum(n for n, _ in one) for one in found[size]} for size in found}
    assert counts == {1: {4 * 2}, 3: {4 * 4}}
    known = {shape["student"].parts for shape in turns.shapes}
    assert found[1] | found[3] <= known
    assert sum(n for n, _ in turns.shapes[-1]["student"].parts) == 16


def test_another_source_keeps_shapes_and_turns(parts):
    order, make = parts
    turns = Turns(order, SIZES, make)
    other = turns.on(Concatenated([some("driver", 60, 3)]))
    assert other.shapes == turns.shapes
    assert not np.array_equal(
        other[5]["targets"]["query_key"], turns[5]["targets"]["query_key"]
    )


def stage(folder, **sizes):
    c = get_default()
    c.model.head, c.model.family, c.tokenizer = "splade", "bert", "embedded:english"
    c.model.hidden_size, c.model.num_layers, c.model.intermediate_size = 16, 1, 16
    for name, negatives in (("pairs", 0), ("hard", 3)):
        rows = [
            {
                "query": f"{name} {i}",
                "pos": [f"the text of {i}"],
                "neg": [f"not the text of {i} but {j}" for j in range(negatives)],
            }
            for i in range(16)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    c.data.sets = {
        name: data_set(
            source=entry("files", files=str(folder / f"{name}.jsonl")),
            format="milco",
            **({"group_size": sizes[name]} if name in sizes else {}),
        )
        for name in ("pairs", "hard")
    }
    c.data.mixer, c.data.batches_from = "round_robin", "one"
    c.data.query_length = c.data.document_length = 16
    c.data.length_parts = 1
    c.loss, c.batch_size, c.steps = {"infonce": {}}, 4, 6
    c.regularizer.query = 1e-3
    c.log.every = 1
    return c


def test_what_does_not_fit_is_refused(tmp_path):
    c = stage(tmp_path, hard=4)
    validate(c)
    c.data.batches_from = "mixed"
    with pytest.raises(
        InputError, match=r"group sizes 1, 4, but .*batches_from is 'mi"
    ):
        validate(c)
    c.data.batches_from = "one"
    c.loss = {"kl": {}}
    with pytest.raises(InputError, match="group_size is 1; the loss kl compares"):
        validate(c)
    c.loss = {"infonce": {}}
    c.data.sets["pairs"].group_size = -1
    with pytest.raises(InputError, match=r"sets\.pairs\.group_size is -1; it must be"):
        validate(c)


def test_rows_need_as_many_negatives_as_their_own_set_asks_for(tmp_path):
    c = stage(tmp_path, hard=5)  # a positive and four negatives, of three
    with pytest.raises(InputError, match="a group of 5 documents needs 4"):
        run.run(c, tmp_path / "run", Console(quiet=True))


@pytest.mark.slow
def test_a_run_compiles_a_step_for_each_size(tmp_path, monkeypatch):
    from lsrjax.training import compiled_steps

    made = []
    monkeypatch.setattr(
        compiled_steps,
        "compiled",
        functools.partial(
            lambda one, *given: made.append(given[-1]) or one(*given),
            compiled_steps.compiled,
        ),
    )
    c = stage(tmp_path, hard=4)
    run.run(c, tmp_path / "whole", Console(quiet=True))
    counts = [len(batch["student"]["place"]["document"]) for batch in made]
    assert sorted(set(counts)) == [4, 16] and len(made) == 2
    lines = (tmp_path / "whole" / "train" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(np.isfinite(json.loads(x)["loss"]) for x in lines)
