"""Every family of encoders trains, and gives the same vectors in other programs."""

import json
import pathlib

import jax
import numpy as np
import pytest
from convert.milco_models import own_modules
from programs import checkpoints
from rich.console import Console
from sentence_transformers import SparseEncoder

from lsrjax.checkpoint import saved_model, train_states
from lsrjax.config.fields import get_default
from lsrjax.convert import targets
from lsrjax.convert.open_model import open_portable
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.retrieval.encode_texts import TextEncoder, joined
from lsrjax.training import run, train_step

pytestmark = pytest.mark.slow
FAMILIES = pytest.mark.parametrize("family", BACKBONES)
BERT = pathlib.Path(__file__).parent / "golden" / "bert"
LENGTHS = {"query": 9, "document": 13}
# Their positions are columns of the batch, as in transformers; DeBERTa's where its
# config has `position_biased_input`, as here.
FROM_THE_LEFT = ("bert", "distilbert", "electra", "ernie", "deberta-v2")
WORDS = (
    "the old library reads files fast and prints fonts on every small screen".split()
)


def sentence(rng):
    return " ".join(rng.choice(WORDS, rng.integers(1, 12)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Queries with scored documents."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    groups = [
        {
            "query": sentence(rng),
            "pos": [sentence(rng)],
            "neg": [sentence(rng)],
            "pos_scores": [3.0],
            "neg_scores": [float(rng.normal())],
        }
        for _ in range(12)
    ]
    text = "".join(json.dumps(row) + "\n" for row in groups)
    (folder / "groups.jsonl").write_text(text)
    return folder


def stage(files, **init):
    c = get_default()
    c.init = init
    c.data.source = "files"
    c.data.source.files = str(files)
    c.data.query_length = LENGTHS["query"]
    c.data.document_length = LENGTHS["document"]
    c.data.length_parts = 1
    c.batch_size = 4
    c.steps = 2
    c.optim.lr = 1e-3
    c.log.every = 1
    return c


def distilled(folder, data):
    """A run of one stage: MILCO from the family's encoder."""
    c = stage(data / "groups.jsonl", encoder=str(folder), head=str(BERT))
    c.model.head.lexecho = True
    c.data.group_size = 2
    c.loss = {"kl": {}}
    c.memory.encode_chunk, c.memory.remat = 5, "layer"
    return c


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    with own_modules(tmp_path_factory.mktemp("modules")):
        yield


@FAMILIES
def test_it_trains_and_gives_the_same_vectors_in_its_client(family, data, tmp_path):
    folder = checkpoints.write(tmp_path / "start", family)
    run.run(distilled(folder, data), tmp_path / "run", Console(quiet=True))
    trained, before = tmp_path / "run" / "train", open_portable(str(folder)).params
    word = open_portable(str(trained)).params["encoder"]["embeddings"]["word"]
    assert np.abs(
        word["embedding"] - before["encoder"]["embeddings"]["word"]["embedding"]
    ).max()
    # As it comes, and once more after a stage with another head.
    for source, target in ((folder, "splade"), (trained, "milco-sparse-encoder")):
        model, out = open_portable(str(source)), tmp_path / target
        if not targets.TARGETS[target].encodes(model.spec.encoder):
            with pytest.raises(InputError, match=f"family {family}"):
                targets.export(str(source), target, out)
            target = "lsrjax"
        targets.export(str(source), target, out)
        same_vectors(model, out, target)


def same_vectors(model, folder, target):
    rng = np.random.default_rng(1)
    texts = ["", "library", *(sentence(rng) for _ in range(5)), " ".join(3 * WORDS)]
    if target != "lsrjax":
        program = SparseEncoder(str(folder), trust_remote_code=True)
    for role, length in LENGTHS.items():
        wanted = vectors(model, texts, role, length)
        if target == "lsrjax":
            found = vectors(saved_model.load_model(folder), texts, role, length)
        else:
            encode = getattr(program, f"encode_{role}")
            program.max_seq_length = length
            found = encode(texts, convert_to_tensor=True).to_dense().cpu().numpy()
        tolerance = 1e-5 * wanted.max()
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)
        assert len(np.unique(wanted.round(4), axis=0)) >= len(texts) - 1


def vectors(model, texts, role, length):
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=8)
    return joined(encoder.encode(model.params, texts, length, role)).toarray()


B, L, MORE = 3, 9, 5


def seen_by(spec):
    """Parts of a text's vector and their gradients, jitted for any padding."""
    graphdef, _ = retriever.split(spec)
    rng = np.random.default_rng(2)
    incoming = rng.normal(size=(B, checkpoints.VOCABULARY)).astype(np.float32)

    def total(params, text):
        views = retriever.apply(graphdef, params, text)
        weights_BV = views["terms"].weights_BV
        return (weights_BV * incoming).sum(), weights_BV

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@FAMILIES
def test_padding_on_either_side_changes_nothing(family):
    spec = checkpoints.spec_of(family)
    params = checkpoints.random_params(spec)
    rng = np.random.default_rng(4)
    ids = rng.integers(5, checkpoints.VOCABULARY, (B, L))
    lengths = [L, 5, 1]
    compute = seen_by(spec)

    def padded(length, *, left):
        """The texts, with other tokens as their padding."""
        found = rng.integers(5, checkpoints.VOCABULARY, (B, length))
        mask = np.zeros((B, length), bool)
        for row, count in enumerate(lengths):
            first = length - count if left else 0
            found[row, first : first + count] = ids[row, :count]
            mask[row, first : first + count] = True
        return {"ids": found, "mask": mask}

    (_, wanted), wanted_gradient = compute(params, padded(L, left=False))
    sides = [False] if family in FROM_THE_LEFT else [False, True]
    for left in sides:
        (_, found), gradient = compute(params, padded(L + MORE, left=left))
        assert_close(found, wanted, 1e-5)
        same_trees(gradient, wanted_gradient, 1e-5)


@FAMILIES
def test_a_state_is_restored_bit_for_bit(family, tmp_path):
    """Micro-batches and remat are in tests/distributed/test_sharding.py."""
    config = get_default()
    config.loss, config.model.head = {"infonce": {}}, "splade"
    spec = checkpoints.spec_of(family)
    step = train_step.make_step(config, 10, spec)
    empty = train_step.init_state(step, checkpoints.random_params(spec))
    rng = np.random.default_rng(5)
    state = jax.tree.map(
        lambda leaf: rng.integers(0, 9, np.shape(leaf)).astype(leaf.dtype), empty
    )
    saved = train_states.Checkpoints(tmp_path, keep=1, metric="R")
    saved.save(state, None)
    saved.close()
    again = train_states.Checkpoints(tmp_path, keep=1, metric="R")
    restored = again.restore(empty, again.latest_step())
    again.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def assert_close(found, wanted, tolerance, name="", scale=0.0):
    scale = max(scale, np.abs(wanted).max())
    np.testing.assert_allclose(
        found, wanted, atol=tolerance * scale, rtol=0, err_msg=name
    )


def same_trees(found, wanted, tolerance):
    """To a tolerance of the leaf's largest entry, or of a hundredth of all leaves'."""
    # A shift of all keys changes no attention: the gradient of their bias is rounding.
    smallest = 0.01 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, value), other in zip(leaves, jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        assert_close(other, value, tolerance, name, smallest)
