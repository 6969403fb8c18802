"""Padding never changes a loss, a gradient or a representation.

Each case is the objective of the real training step on a tiny model; its gradient is
read from an optimizer that keeps it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import tiny

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert.names import by_layer
from lsrjax.data.batching.length_shapes import Shape, cut, fit
from lsrjax.losses import objective
from lsrjax.losses.regularizers import REGULARIZERS
from lsrjax.losses.table import LOSSES
from lsrjax.models import retriever
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.views import Bag, Dense, MultiVector
from lsrjax.training.train_step import init_state, make_step

B, G, L, MORE = 3, 2, 7, 5
VOCAB, PIVOT_VOCAB = 53, 41


def encoder(family, vocab_size, spread=0.3):
    return tiny.encoder(
        family,
        vocab_size=vocab_size,
        max_positions=L + MORE + 2,
        pad_token_id=1,
        # Random weights of the usual size make all texts nearly alike.
        initializer_range=spread,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and an objective."""

    head: str
    loss: Mapping[str, dict] = dataclasses.field(hash=False)
    regularizer: str = "l1"
    lexecho: bool = False
    repeats: str = "sum"
    pool_mask: str = "exclude"
    options: tuple[tuple[str, object], ...] = ()  # of the spec
    tolerance: float = 1e-6  # of a step's gradient
    spread: float = 0.3  # of random weights


def weights_of(case):
    """The losses by name."""
    return objective.of(case.loss).weights


CASES = [
    Case("splade", {"infonce": {}}, "flops", spread=0.2),
    Case("milco", {"alignment": {}}, spread=0.2),
    Case("milco", {"kl": {}}, "l1", lexecho=True, repeats="sum"),
    Case("milco", {"kl": {}}, "flops", lexecho=True, repeats="max"),
    Case(
        "milco", {"margin_mse": {"weight": 0.1}, "infonce": {}}, "flops", lexecho=True
    ),
]
OTHERS = [
    Case("splade", {"infonce": {}}, "flops", options=(("pooling", "sum"),)),
    Case("splade", {"infonce": {}}, "flops", options=(("queries", "static"),)),
    Case("token_weights", {"kl": {}}),
    Case("token_weights", {"kl": {}}, options=(("queries", "static"),)),
    Case(
        "dense",
        {"kl": {"temperature": 0.5}},
        options=(("pooling", "mean"), ("normalize", False), ("embedding_size", 7)),
    ),
    Case("dense", {"infonce": {"prefixes": (3, 5)}}, options=(("pooling", "mean"),)),
    Case("colbert", {"kl": {}}, options=(("embedding_size", 5), ("skip_ids", (3,)))),
    Case(
        "aggretriever",
        {"kl": {}},
        options=(("semantic_size", 3), ("lexical_size", 5)),
    ),
    Case(
        "hybrid",
        {"kl": {}},
        "flops",
        options=(("embedding_size", 5), ("embedding_pooling", "mean")),
    ),
    # The embeddings of all tokens add up in its biases' gradients, and round there.
    Case("m3", {"m3": {}}, tolerance=3e-6),
    Case("token_weights", {"infonce": {}}, "masked_flops"),
    Case(
        "csr",
        {"reconstruction": {}, "infonce": {"weight": 0.1}},
        "idf_flops",
        options=(
            *(("pooling", "mean"), ("latents", 23), ("active_latents", 3)),
            *(("revived_latents", 4), ("dead_after", 0)),
        ),
    ),
    Case("splade", {"kl": {}}, "joint_flops"),
    Case("splade", {"kl": {"weight": 0.1}, "language_kl": {}}),
    Case("milco", {"embedding": {"weight": 0.1}}),
    Case(
        "milco",
        # A divergence near 0 would be rounding.
        {
            "batch_kl": {"temperature": 1.0, "teacher_scale": 30.0},
            "batch_margin_mse": {"weight": 0.1},
        },
        lexecho=True,
    ),
    Case("colbert", {"cosent": {"temperature": 1.0}, "passage_centric": {}}),
    Case("dense", {"mann_whitney": {}, "listnet": {}, "wasserstein": {}, "angle": {}}),
    Case("splade", {"mlm": {"rate": 0.3}, "bag_of_words": {}, "infonce": {}}),
]
TOWERS = Case("milco", {"kl": {}}, lexecho=True, options=(("towers", "separate"),))
ALL = [*CASES, *OTHERS]
# The rest only where time does not matter: a compilation takes seconds.
STEP_CASES = [
    *CASES[:3],
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (CASES[3], *OTHERS, TOWERS)
    ),
]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (HEADS, {case.head for case in ALL}),
        (LOSSES, {n for c in ALL for n in weights_of(c)}),
        (REGULARIZERS, {case.regularizer for case in ALL}),
    ],
    ids=["heads", "losses", "regularizers"],
)
def test_every_entry_has_a_case(table, found):
    missing = set(table) - found
    assert not missing, f"add a Case of {', '.join(sorted(missing))} to OTHERS"


def config_of(case):
    c = get_default()
    c.data.group_size = G
    c.model.head = case.head
    c.loss = dict(case.loss)
    if "language_kl" in case.loss:
        # One query in each of B languages.
        c.data.mixing, c.data.document_languages = (
            "round_robin",
            {"en": 1, "da": 1, "de": 1},
        )
    weighs = HEADS[case.head].sparse or HEADS[case.head].weighed
    if "alignment" not in case.loss and weighs:
        c.regularizer = entry(case.regularizer, document=0.2)
        if case.regularizer == "masked_flops":
            c.regularizer.threshold = 2
        if case.regularizer != "joint_flops":
            c.regularizer.query = 0.3
    if case.lexecho:
        c.regularizer.source_query, c.regularizer.source_document = 0.1, 0.05
    return c


def objective_of(case):
    return objective.of(config_of(case).loss)


def keep_gradient():
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )


@functools.cache
def setup(case):
    own = {
        "splade": {"pool_mask": case.pool_mask, "tied": False},
        "milco": {
            "pool_mask": case.pool_mask,
            "lexecho": case.lexecho,
            "repeats": case.repeats,
            "pivot_vocab_size": PIVOT_VOCAB,
            "pivot_hidden_size": 10,
        },
    }
    spec = RetrieverSpec.of(
        head=case.head,
        encoder=encoder("xlm-roberta", VOCAB, case.spread),
        **own.get(case.head, {}),
        **dict(case.options),
    )
    teacher = teacher_params = None
    if objective_of(case).reads_views:
        teacher = RetrieverSpec.of(
            head="splade", encoder=encoder("bert", PIVOT_VOCAB, case.spread), tied=False
        )
        teacher_params = retriever.init_params(teacher, 5)
    rng = np.random.default_rng(6)
    idf = {
        view: rng.uniform(0.5, 4, size).astype(np.float32)
        for view, size in spec.views.items()
    }
    step = make_step(config_of(case), 10, spec, teacher, idf)
    step = dataclasses.replace(step, optimizer=keep_gradient())
    state = init_state(step, retriever.init_params(spec, 3))
    jitted = jax.jit(step)
    return jitted, state, teacher_params


def rows_of(rng, count, vocab_size):
    """Texts of 1 to L tokens; ids are few, so that tokens repeat within a text."""
    lengths = rng.integers(1, L + 1, count)
    lengths[:2] = L, 1
    return [rng.integers(2, vocab_size // 4, length).tolist() for length in lengths]


def texts_of(case):
    """Token ids of each model's texts, by name."""
    rng = np.random.default_rng(7)
    counts = {"document": B * G}
    texts = {
        "student": {
            name: rows_of(rng, counts.get(name, B), VOCAB)
            for name in objective_of(case).texts
        }
    }
    if objective_of(case).reads_views:
        ranked = objective_of(case).kind == "group"
        read = ("query", "document") if ranked else ("teacher",)
        texts["teacher"] = {
            name: rows_of(rng, counts.get(name, B), PIVOT_VOCAB) for name in read
        }
    if roles_apart(case):
        texts["queries"] = {"query": texts["student"].pop("query")}
    return texts


def roles_apart(case):
    options = dict(case.options)
    return "queries" in options or "towers" in options


def one_part(rows, length=L):
    return Shape(((len(rows), length),))


def batch_of(case, shape=one_part):
    """The batch, each model's texts cut to `shape(rows)`."""
    batch = {
        model: cut(texts, shape(sum(texts.values(), [])), pad_id=1)
        for model, texts in texts_of(case).items()
    }
    rng = np.random.default_rng(8)
    batch["targets"] = {
        name: (3 * rng.normal(size=array.shape)).astype(array.dtype)
        for name, array in objective_of(case).arrays(B, G).items()
    }
    return batch


def padded(batch, fill):
    """The batch with MORE columns of padding; `fill(shape)` gives the ids in them.

    With other ids than the pad token, the padding within the L columns gets them too.
    """

    def pad(text):
        wide = [(0, 0), (0, MORE)]
        mask = np.pad(text["mask"], wide)
        ids = np.pad(text["ids"], wide, constant_values=1)
        return text | {"ids": np.where(mask, ids, fill(ids.shape)), "mask": mask}

    return {
        name: value | {"parts": tuple(map(pad, value["parts"]))}
        if "parts" in value
        else value
        for name, value in batch.items()
    }


def pad_ids(shape):
    return np.ones(shape, np.int32)


def garbage(shape):
    return np.random.default_rng(11).integers(0, PIVOT_VOCAB, shape).astype(np.int32)


def run(case, batch):
    """Metrics, and the gradient by parameter."""
    step, state, teacher_params = setup(case)
    after, metrics = step(state, teacher_params, batch)
    return jax.device_get((metrics, after["opt_state"]))


@functools.cache
def unpadded(case):
    return run(case, batch_of(case))


def assert_close(found, expected, scale=0.0, name="", tolerance=1e-6):
    """To a tolerance of the largest entry expected, or of `scale` if that is larger."""
    scale = max(scale, np.abs(expected).max())
    np.testing.assert_allclose(
        found, expected, atol=tolerance * scale, rtol=0, err_msg=name
    )


def apart(params):
    """With encoders layer by layer, and keys apart from queries and values."""
    if "query_tower" in params:
        params = params | {"query_tower": apart(params["query_tower"])}
    return params | {"encoder": by_layer(params["encoder"], "bert")}


def assert_equal_steps(found, expected, tolerance):
    (metrics, gradient), (more_metrics, more_gradient) = expected, found
    gradient, more_gradient = apart(gradient), apart(more_gradient)
    assert more_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert_close(more_metrics[name], value, name=name)
    smallest = 0.01 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    more_leaves = jax.tree.leaves(more_gradient)
    for (name, value), more in zip(leaves.items(), more_leaves, strict=True):
        scale = smallest
        if name.endswith("['key']['bias']"):
            # A shift of all keys changes no attention: this gradient is 0, and what is
            # left of it is the rounding of the terms that its kernel's is the sum of.
            kernel = leaves[name.replace("['bias']", "['kernel']")]
            scale = max(scale, np.abs(kernel).max())
        assert_close(more, value, scale, name, tolerance)


@pytest.mark.parametrize("fill", [pad_ids, garbage])
@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_padding_changes_no_loss_and_no_gradient(case, fill):
    found = run(case, padded(batch_of(case), fill))
    assert_equal_steps(found, unpadded(case), case.tolerance)


def three_parts(rows):
    """Each part as long as its longest text."""
    return fit(np.array([[*map(len, rows)]]), L, parts=3, multiple=1)[0]


# Each case compiles the step for parts of its own.
CUT_CASES = [
    CASES[2],
    *(pytest.param(case, marks=pytest.mark.slow) for case in (*CASES[:2], *CASES[3:])),
]


@pytest.mark.parametrize("case", CUT_CASES, ids=str)
def test_cutting_texts_by_length_changes_no_loss_and_no_gradient(case):
    batch = batch_of(case, three_parts)
    lengths = [part["ids"].shape[1] for part in batch["student"]["parts"]]
    assert len(set(lengths)) == 3
    assert_equal_steps(run(case, batch), unpadded(case), case.tolerance)


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(graphdef, params, text, roles_apart):
    text = {"ids": text["ids"], "mask": text["mask"]}
    if roles_apart:
        query, document = (
            retriever.apply(graphdef, params, text, role=role)
            for role in ("query", "document")
        )
        return jax.tree.map(lambda *x: jnp.concatenate(x), query, document)
    # Every other text is a query.
    query = jnp.arange(len(text["ids"])) % 2 == 0
    return retriever.apply(graphdef, params, text | {"query": query})


@pytest.mark.parametrize("case", [CASES[0], *CASES[2:], *OTHERS], ids=str)
def test_padding_changes_no_representation(case):
    jitted, state, _ = setup(case)
    batch = batch_of(case)
    encoded = [
        jax.device_get(
            encode(
                jitted.__wrapped__.graphdef,
                state["params"],
                b["student"]["parts"][0],
                roles_apart(case),
            )
        )
        for b in (batch, padded(batch, garbage))
    ]
    plain, more = encoded
    assert plain.keys() == more.keys()
    for name, view in plain.items():
        if isinstance(view, MultiVector):
            assert not more[name].mask_BL[:, L:].any()
            assert_close(more[name].tokens_BLD[:, :L], view.tokens_BLD)
        elif isinstance(view, Dense):
            assert_close(more[name].embedding_BD, view.embedding_BD)
        elif isinstance(view, Bag):
            padding = more[name].weights_BK[:, L:]
            np.testing.assert_array_equal(padding, np.zeros_like(padding))
            assert_close(more[name].weights_BK[:, :L], view.weights_BK)
            sums = (
                np.asarray(view.column_means()),
                np.asarray(more[name].column_means()),
            )
            assert_close(sums[1], sums[0])
        else:
            assert_close(more[name].raw_BV, view.raw_BV)
            assert_close(more[name].weights_BV, view.weights_BV)


def test_the_reference_depends_on_padding():
    """Its padded positions take part in the maximum as 0, and cut the gradient."""
    case = Case("milco", {"alignment": {}}, pool_mask="multiply")
    batch = batch_of(case)
    # From texts without padding to the same texts with some.
    for t in (*batch["student"]["parts"], *batch["teacher"]["parts"]):
        t["ids"] = np.where(t["mask"], t["ids"], 2)
        t["mask"] = np.ones_like(t["mask"])
    metrics, gradient = run(case, batch)
    more_metrics, more_gradient = run(case, padded(batch, pad_ids))
    assert abs(more_metrics["loss"] / metrics["loss"] - 1) > 1e-3
    bias = gradient["head"]["mlm"]["bias"]
    more_bias = more_gradient["head"]["mlm"]["bias"]
    assert (more_bias != 0).sum() < (bias != 0).sum()
