"""Prompt vectors at the start, against transformers fed with embeddings."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from programs import prompted, tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.config import check_run
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert import open_model
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import adapters, retriever
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.views import Bag
from lsrjax.retrieval.encode_texts import TextEncoder


def some(names, *quick):
    slow = pytest.mark.slow
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 17,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
# transformers' classes of a model alone, and of one with a masked-LM head.
CLASSES = {
    "bert": ("Bert", "ForMaskedLM", {}),
    "xlm-roberta": ("XLMRoberta", "ForMaskedLM", {"pad_token_id": 1}),
    "modernbert": ("ModernBert", "ForMaskedLM", {"local_attention": 4}),
    "qwen3": ("Qwen3", "ForCausalLM", {"num_key_value_heads": 1, "head_dim": 4}),
}
# The others are among the slow ones.
FAMILIES = some(CLASSES, "bert")
TEXTS = ["a library for files", "the kernel, and its drivers", "fonts!", ""]
COUNTS = {"query": 3, "document": 2}


def folder_of(family, path, head=False, more=0):
    """A Hugging Face folder of random weights, and its model; `more` unused rows."""
    multilingual = family == "xlm-roberta"
    source = (
        embedded.MULTILINGUAL_TOKENIZER
        if multilingual
        else (embedded.ENGLISH_TOKENIZER)
    )
    name, masked, own = CLASSES[family]
    size = TextTokenizer(source).vocab_size + more
    config = getattr(transformers, f"{name}Config")(
        **(SIZES | own), vocab_size=size, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = getattr(transformers, name + (masked if head else "Model"))(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    shutil.copytree(source, path, dirs_exist_ok=True)
    return model.eval()


def config_of(path, head, **adapt):
    c = get_default()
    c.init = {"encoder": {"model": str(path)}}
    c.model.head = head
    c.loss = {"infonce": {}}
    c.data.query_length, c.data.document_length = 20, 30
    c.adapt = {"prompt": adapt or {"queries": 3, "documents": 2}}
    return c


def student(c, path=None):
    made = build_student.student(c, lambda ref: open_model.open_model(ref, path))
    return made, jax.tree.map(np.asarray, made.params([]))


def vectors(made, params, texts, role, length=20):
    encoder = TextEncoder(made.spec, TextTokenizer(made.tokenizer), batch_size=4)
    return encoder.encode(params, texts, length, role)


@torch.no_grad()
def of_transformers(model, family, path, texts, rows):
    """The last outputs of texts whose embeddings have rows behind the first token."""
    tokenizer = TextTokenizer(path)
    table = model.get_input_embeddings().weight
    for ids in tokenizer.ids(texts, 100):
        at = int(tokenizer.begins)
        own = table[torch.tensor(ids, dtype=torch.long)]
        both = torch.cat([own[:at], torch.tensor(rows), own[at:]])[None]
        out = model(inputs_embeds=both, attention_mask=torch.ones(both.shape[:2]))
        yield out[0][0].numpy()


def rows_of(made, params, role):
    table = params["encoder"]["embeddings"]["word"]["embedding"]
    first = 0 if role == "query" else COUNTS["query"]
    ids = made.spec.prompt_ids[first : first + COUNTS[role]]
    assert len(ids) == COUNTS[role]
    return table[list(ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_start_is_the_model_with_embeddings_in_front(family, tmp_path):
    model = folder_of(family, tmp_path)
    c = config_of(tmp_path, entry("dense", pooling="mean", normalize=False))
    made, params = student(c)
    table = params["encoder"]["embeddings"]["word"]["embedding"]
    theirs = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table[: len(theirs)], theirs)
    own = [rows_of(made, params, role) for role in COUNTS]
    # Each is the row of an ordinary token, and no two are the same.
    every = np.concatenate(own)
    tokenizer = TextTokenizer(tmp_path)
    ordinary = np.delete(theirs, list(tokenizer.special_ids), axis=0)
    assert all((ordinary == row).all(axis=1).any() for row in every)
    assert len(np.unique(every, axis=0)) == 5
    for role, rows in zip(COUNTS, own, strict=True):
        found = vectors(made, params, TEXTS, role)["dense"].toarray()
        states = of_transformers(model, family, tmp_path, TEXTS, rows)
        wanted = np.stack([states_LD.mean(axis=0) for states_LD in states])
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("more", [0, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_splade_start_has_no_new_terms(family, more, tmp_path):
    model = folder_of(family, tmp_path, head=True, more=more)
    made, params = student(config_of(tmp_path, "splade"))
    size = model.config.vocab_size
    assert made.spec.encoder.vocab_size == max(size, size - more + 5)
    assert made.spec.options.tied == (family != "qwen3")
    for role in COUNTS:
        rows = rows_of(made, params, role)
        found = vectors(made, params, TEXTS, role)["terms"].toarray()
        logits = of_transformers(model, family, tmp_path, TEXTS, rows)
        wanted = np.stack([np.log1p(np.maximum(x.max(axis=0), 0)) for x in logits])
        ids = list(made.spec.prompt_ids)
        assert not found[:, ids].any()
        wanted[:, [i for i in ids if i < size]] = 0
        np.testing.assert_allclose(
            found[:, :size], wanted, atol=1e-5 * np.abs(wanted).max()
        )


def test_only_their_tokens_are_put_in_front_of_texts(tmp_path):
    folder_of("bert", tmp_path)
    c = config_of(tmp_path, entry("dense", pooling="cls"))
    c.model.query_prompt, c.model.document_marker = "search: ", "library"
    made, _ = student(c)
    tokenizer, before = TextTokenizer(made.tokenizer), TextTokenizer(tmp_path)
    query, document = made.spec.prompt_ids[:3], made.spec.prompt_ids[3:]
    assert set(made.spec.prompt_ids) <= set(made.spec.special_ids)
    texts = [*TEXTS, "word " * 99]
    field = TextField.of(made.spec, tokenizer, "query", 20)
    plain = before.ids(["search: " + text for text in texts], 17)
    assert field.ids(texts) == [[one[0], *query, *one[1:]] for one in plain]
    marker = before.vocabulary()["library"]
    field = TextField.of(made.spec, tokenizer, "document", 30)
    plain = before.ids(texts, 27)
    assert field.ids(texts) == [[one[0], marker, *document, *one[1:]] for one in plain]


OPTIONS = {
    "splade": {"tied": True},
    "milco": {
        "lexecho": True,
        "translations": 2,
        "stems": 50,
        "ngrams": 40,
        "pivot_vocab_size": 9,
        "pivot_hidden_size": 5,
    },
    "dense": {"pooling": "cls"},
    "csr": {"latents": 20, "active_latents": 4},
}


@pytest.mark.parametrize("towers", some(["shared", "separate"], "shared"))
@pytest.mark.parametrize("head", some(HEADS, "splade", "milco", "token_weights"))
def test_no_head_has_terms_of_their_tokens(head, towers):
    before = random_model(head, towers, **OPTIONS.get(head, {}))
    c = prompted.config_of(before)
    made = build_student.student(c, lambda reference: before)
    params = made.params([])
    size, ids = made.spec.encoder.vocab_size, list(made.spec.prompt_ids)
    assert size == before.spec.encoder.vocab_size + 5
    tokenizer = TextTokenizer(made.tokenizer)
    graphdef, _ = retriever.split(made.spec)
    for role in COUNTS:
        field = TextField.of(made.spec, tokenizer, role, 30)
        row = np.array(field.ids([TEXTS[1]]))
        assert np.isin(row, ids).sum() == prompted_count(role)
        text = {"ids": jnp.asarray(row), "mask": jnp.ones_like(row)}
        call = functools.partial(retriever.apply, graphdef, role=role)
        sizes = made.spec.views
        for name, view in jax.jit(call)(params, text).items():
            if sizes[name] != size:
                continue
            if isinstance(view, Bag):
                weights = np.zeros((1, size))
                np.add.at(weights[0], view.ids_BK[0], view.weights_BK[0])
            else:
                weights = np.asarray(view.weights_BV)
            assert weights.any() and not weights[:, ids].any(), name


def prompted_count(role):
    return {"query": 2, "document": 3}[role]


def random_model(head, towers="shared", family="bert", **options):
    """A model of positive numbers, of which every term is active."""
    tokenizer = TextTokenizer(embedded.ENGLISH_TOKENIZER)
    encoder = tiny.encoder(family, vocab_size=tokenizer.vocab_size, max_positions=40)
    options = {"special_ids": tokenizer.special_ids} | options
    spec = RetrieverSpec.of(head, encoder, towers=towers, **options)
    rng = np.random.default_rng(1)
    _, abstract = retriever.split(spec)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), abstract)
    folder = open_model.tokenizer_folder("embedded:english")
    return SavedModel(spec, params, folder, None, "before")


def test_a_later_stage_keeps_them_or_trains_them_on():
    before = random_model("splade", tied=True)
    c = prompted.config_of(before)
    first = prompted.student(c, before, seed=3)
    again = prompted.student(c, first)
    c.adapt = {}
    kept = prompted.student(c, first)
    for later in (again, kept):
        assert later.spec == first.spec
        jax.tree.map(np.testing.assert_array_equal, later.params, first.params)
    # Also those of an encoder that is taken alone.
    c.init = {"encoder": {"model": "before"}}
    c.model.head, c.model.query_prompt = entry("dense", pooling="cls"), "find: "
    spec = prompted.student(c, first).spec
    assert spec.query_prompt == f"{first.spec.query_prompt}find: "
    assert spec.document_prompt == first.spec.document_prompt
    assert spec.prompt_ids == first.spec.prompt_ids
    c = prompted.config_of(before, 2, 4)
    with pytest.raises(InputError, match="2 prompt vectors for queries and 3 for"):
        prompted.student(c, first)


def test_random_weights_have_them_too():
    c = config_of("", entry("splade", tied=True))
    c.init, c.tokenizer = {}, "embedded:english"
    c.model.family, c.model.hidden_size = "bert", 8
    made, params = student(c)
    size = TextTokenizer(embedded.ENGLISH_TOKENIZER).vocab_size
    assert made.spec.prompt_ids == (*range(size, size + 5),)
    found = vectors(made, params, TEXTS, "query")["terms"].toarray()
    assert found.any() and not found[:, size:].any()
    c.model.family = "llama"
    with pytest.raises(InputError, match="a llama has no bias.*tied = False"):
        student(c)
    c.model.head.tied = False
    made, params = student(c)
    found = vectors(made, params, TEXTS, "query")["terms"].toarray()
    assert found.any() and not found[:, size:].any()


def test_a_plan_without_a_tokenizer_knows_the_sizes():
    before = random_model("splade", tied=True)
    c = prompted.config_of(before)
    before = dataclasses.replace(
        before, tokenizer=None, params=retriever.split(before.spec)[1]
    )
    made = build_student.student(c, lambda reference: before).spec
    size = before.spec.encoder.vocab_size
    assert made.encoder.vocab_size == size + 5
    assert made.prompt_ids == (*range(size, size + 5),)
    shapes = adapters.shapes(c, made)["encoder"]["embeddings"]["word"]
    assert shapes["prompt"].shape == (5, 12)
    # The stage after it.
    after = dataclasses.replace(before, spec=made, params=retriever.split(made)[1])
    assert build_student.student(c, lambda reference: after).spec == made


def test_texts_need_room_behind_them():
    before = random_model("splade", tied=True)
    c = prompted.config_of(before, 8, 8)
    c.data.query_length = 10
    with pytest.raises(InputError, match="query_length is 10, of which .* takes 10"):
        prompted.student(c, before)
    c.data.query_length = 11
    prompted.student(c, before)


def left_out(content, config):
    config["truncation_side"] = "left"


def gap(content, config):
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] += 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (left_out, "cuts off with the front of a text"),
        (gap, "have gaps below"),
    ],
)
def test_tokenizers_that_cannot_have_them_are_refused(change, said, tmp_path):
    source = open_model.tokenizer_folder("embedded:english")
    folder = shutil.copytree(source, tmp_path / "tokenizer")
    paths = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    parts = [json.loads(path.read_text()) for path in paths]
    change(*parts)
    for path, part in zip(paths, parts, strict=True):
        path.write_text(json.dumps(part))
    c = config_of("", entry("dense", pooling="cls"))
    c.init, c.tokenizer = {}, str(folder)
    with pytest.raises(InputError, match=said):
        student(c)


def inference_free(c):
    c.model.head = entry("splade", queries="static")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.adapt.update(prompt={"queries": 0, "documents": 0}),
            "adapt.prompt.queries and documents are both 0",
        ),
        (
            lambda c: c.adapt.update(prompt={"queries": -1}),
            "adapt.prompt.queries is -1",
        ),
        (lambda c: c.adapt.update(prompt={"length": 3}), "prompt.length is no option"),
        (inference_free, "of the head splade are not encoded. Set it to 0"),
    ],
)
def test_settings_without_sense_are_refused(change, said):
    c = config_of("", "splade")
    c.init, c.tokenizer, c.steps = {}, "embedded:english", 1
    c.data.source = "debian"
    check_run.validate(c)
    change(c)
    with pytest.raises(InputError) as error:
        check_run.validate(c)
    assert said in str(error.value)
