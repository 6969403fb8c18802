"""Models of sentence-transformers 6.2 in ours and back; broken ones are refused."""

import functools
import json
import pathlib
import shutil
import string

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import (
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
)

from lsrjax.convert import open_model, targets
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval.encode_texts import TextEncoder

SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 14,
}
SLOW = pytest.mark.slow
EXPANSION = {"strategy": "fixed", "length": 9}


def backbone(folder, family, *, masked_lm, tied=True, layers=1):
    """A Hugging Face folder with random weights, all different."""
    xlmr = family == "xlm-roberta"
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        embedded.MULTILINGUAL_TOKENIZER if xlmr else embedded.ENGLISH_TOKENIZER
    )
    name = "XLMRoberta" if xlmr else "Bert"
    config = getattr(transformers, f"{name}Config")(
        **(SIZES | {"num_hidden_layers": layers}),
        vocab_size=len(tokenizer),
        max_position_embeddings=22 if xlmr else 20,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(3)
    kind = "ForMaskedLM" if masked_lm else "Model"
    model = getattr(transformers, name + kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if masked_lm and not tied:
            # Two names that transformers ties only with the decoder; one is in use.
            head = model.lm_head if xlmr else model.cls.predictions
            head.bias.copy_(head.decoder.bias)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(folder)
    return tokenizer


def dense(*args, feature="sentence_embedding"):
    return Dense(*args, bias=False, activation_function=None, module_input_name=feature)


def splade(folder, pooling, **options):
    backbone(folder, **options, masked_lm=True)
    model = Transformer(str(folder), transformer_task="fill-mask", query_length=8)
    return SparseEncoder(
        modules=[model, SpladePooling(pooling)], prompts={"query": "q: "}
    )


def inference_free(folder, family):
    tokenizer = backbone(folder, family, masked_lm=True)
    weight = torch.rand(len(tokenizer))
    weight[tokenizer.all_special_ids] = 0
    document = [Transformer(str(folder), transformer_task="fill-mask"), SpladePooling()]
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(tokenizer, weight)],
        document_modules=document,
    )
    return SparseEncoder(modules=[router])


def towers(folder, sizes=(1, 1)):
    """A tower for each role, which share the module that pools."""
    pooling = Pooling(12, "mean")
    routes = {}
    for role, layers in zip(("query", "document"), sizes, strict=True):
        backbone(folder / role, "bert", masked_lm=False, layers=layers)
        length = {"query": 8, "document": 17}[role]
        model = Transformer(str(folder / role), max_seq_length=length)
        with torch.no_grad():
            model.model.embeddings.word_embeddings.weight += len(routes)
        routes[f"{role}_modules"] = [model, pooling]
    router = Router.for_query_document(**routes)
    return SentenceTransformer(modules=[router, dense(12, 5), Normalize()])


def csr(folder, family, *, more=()):
    backbone(folder, family, masked_lm=False)
    autoencoder = SparseAutoEncoder(12, 30, k=4, k_aux=5, dead_threshold=6)
    with torch.no_grad():
        autoencoder.pre_bias.normal_()
        autoencoder.latent_bias.normal_()
        autoencoder.stats_last_nonzero.copy_(torch.arange(30))
    model = Transformer(str(folder))
    return SparseEncoder(modules=[model, Pooling(12, "mean"), *more, autoencoder])


def plain_dense(folder, family):
    backbone(folder, family, masked_lm=False)
    modules = [Transformer(str(folder)), Pooling(12, "cls"), dense(12, 5), Normalize()]
    return SentenceTransformer(
        modules=modules, prompts={"query": "query: ", "document": "passage: "}
    )


def multi_vector(folder, family, marker):
    backbone(folder, family, masked_lm=False)
    modules = [
        Transformer(str(folder), document_length=17, query_expansion=EXPANSION),
        dense(12, 5, feature="token_embeddings"),
        MultiVectorMask(list(string.punctuation)),
        Normalize("token_embeddings"),
    ]
    return MultiVectorEncoder(modules=modules, prompts={"query": marker})


MODELS = {
    "splade": ("splade", functools.partial(splade, family="bert", pooling="max")),
    "splade untied": (
        "splade",
        functools.partial(splade, family="bert", pooling="max", tied=False),
    ),
    "splade xlm-roberta": (
        "splade",
        functools.partial(splade, family="xlm-roberta", pooling="sum", tied=False),
    ),
    "inference-free": (
        "inference-free",
        functools.partial(inference_free, family="bert"),
    ),
    "csr": ("csr", functools.partial(csr, family="xlm-roberta")),
    "csr normalized": (
        "csr",
        functools.partial(csr, family="bert", more=[Normalize()]),
    ),
    "dense": ("dense", functools.partial(plain_dense, family="bert")),
    "multi-vector": (
        "multi-vector",
        functools.partial(multi_vector, family="bert", marker="[MASK] "),
    ),
    "multi-vector prompt": (
        "multi-vector",
        functools.partial(multi_vector, family="xlm-roberta", marker="query: "),
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves each model once."""
    root = tmp_path_factory.mktemp("theirs")

    @functools.cache
    def of(name):
        folder = root / name.replace(" ", "-")
        MODELS[name][1](root / f"backbone-{folder.name}").save_pretrained(
            str(folder), create_model_card=False
        )
        return folder

    return of


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a saved model, to break."""

    def of(name):
        folder = tmp_path / "copy"
        for path in saved(name).rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(saved(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return folder

    return of


def tensors(folder):
    """Folder and name -> tensor, of all weights."""
    return {
        (str(path.relative_to(folder).parent), name): tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def settings(folder):
    """What the configs of a model's modules say, but for programs' versions."""
    found = {
        str(path.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("*.json"))
        if "tokenizer" not in path.name and path.name != "config.json"
    }
    for path in sorted(folder.glob("*_*/config.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())
    model = found["config_sentence_transformers.json"]
    for key in ("__version__", "similarity_fn_name"):
        model.pop(key, None)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_theirs_come_back_with_the_same_tensors(name, saved, tmp_path):
    folder = saved(name)
    targets.export(str(folder), MODELS[name][0], tmp_path / "out")
    found, wanted = tensors(tmp_path / "out"), tensors(folder)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype, key
        if "pooler." in key[1]:  # of pre-training, and not part of ours
            assert not found[key].any() and found[key].shape == tensor.shape
        else:
            np.testing.assert_array_equal(found[key], tensor, err_msg=str(key))


QUICK = ("splade", "inference-free", "csr", "multi-vector")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=SLOW) for name in MODELS],
)
def test_theirs_keep_prompts_and_lengths(name, saved, tmp_path):
    """A second round changes no setting any more, and the first one no meaning."""
    first, second = tmp_path / "first", tmp_path / "second"
    targets.export(str(saved(name)), MODELS[name][0], first)
    targets.export(str(first), MODELS[name][0], second)
    assert settings(first) == settings(second)
    opened = open_model.open_portable(str(saved(name)))
    again = open_model.open_portable(str(first))
    assert opened.spec == again.spec
    assert opened.query_length == again.query_length
    assert opened.document_length == again.document_length
    if name.startswith("multi-vector"):
        assert (opened.query_length, opened.document_length) == (9, 17)
    elif name.startswith("splade"):
        assert (opened.query_length, opened.document_length) == (8, 20)
        assert opened.spec.query_prompt == "q: "


def change(folder, file, **values):
    path = folder / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def older(folder, name, **values):
    """Puts a file of another name in place of the Transformer's config."""
    (folder / "sentence_bert_config.json").unlink()
    path = folder / f"sentence_{name}_config.json"
    path.write_text(json.dumps(values))


def rename(folder, file, old, new):
    state = load_file(folder / file)
    state[new] = state.pop(old)
    save_file(state, folder / file)


def cut(folder, file, name):
    state = load_file(folder / file)
    state[name] = state[name][:-1]
    save_file(state, folder / file)


def swap(folder, one, other):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(content))


BROKEN = {
    "tensor of a module under another name": (
        "csr",
        lambda f: rename(
            f, "2_SparseAutoEncoder/model.safetensors", "pre_bias", "bias"
        ),
        r"(?s)bias: \[12\] left over.*pre_bias: missing, \[12\] expected",
    ),
    "tensor of a module of another shape": (
        "dense",
        lambda f: cut(f, "2_Dense/model.safetensors", "linear.weight"),
        r"linear.weight: \[4, 12\], \[5, 12\] expected",
    ),
    "tensor of the backbone": (
        "splade",
        lambda f: rename(f, "model.safetensors", "cls.predictions.bias", "cls.bias"),
        r"(?s)missing.*cls.predictions.bias.*left over.*cls.bias \[8192\]",
    ),
    "weights of a module missing": (
        "inference-free",
        lambda f: (f / "query_0_SparseStaticEmbedding/model.safetensors").unlink(),
        "model.safetensors is missing",
    ),
    "weights cut off": (
        "csr",
        lambda f: (f / "2_SparseAutoEncoder/model.safetensors").write_bytes(
            (f / "2_SparseAutoEncoder/model.safetensors").read_bytes()[:-8]
        ),
        "not a whole safetensors file",
    ),
    "other activation": (
        "splade",
        lambda f: change(f, "1_SpladePooling/config.json", activation_function="gelu"),
        "activation_function is 'gelu'",
    ),
    "an activation that torch does not have": (
        "dense",
        lambda f: change(f, "2_Dense/config.json", activation_function="my.Identity"),
        "activation_function is 'my.Identity'",
    ),
    "no activation's name": (
        "dense",
        lambda f: change(f, "2_Dense/config.json", activation_function=None),
        "activation_function is None",
    ),
    "embeddings cut off": (
        "dense",
        lambda f: change(f, "config_sentence_transformers.json", truncate_dim=4),
        "truncate_dim is 4.*--embedding_size",
    ),
    "expanded queries of a single embedding": (
        "dense",
        lambda f: change(f, "sentence_bert_config.json", query_expansion=EXPANSION),
        "query_expansion is",
    ),
    "lower case by an older file": (
        "dense",
        lambda f: older(f, "distilbert", do_lower_case=True),
        r"sentence_distilbert_config\.json: do_lower_case is True",
    ),
    "a length that no text has": (
        "splade",
        lambda f: change(f, "sentence_bert_config.json", query_length=1),
        "query_length is 1 tokens",
    ),
    "a default prompt without a text": (
        "dense",
        lambda f: change(
            f, "config_sentence_transformers.json", default_prompt_name="web"
        ),
        r"default_prompt_name is .web., and prompts are of \w+, \w+\.",
    ),
    "other pooling": (
        "csr",
        lambda f: change(f, "1_Pooling/config.json", pooling_mode="weightedmean"),
        "pooling 'weightedmean'",
    ),
    "normalization of another kind": (
        "csr",
        lambda f: change(f, "2_SparseAutoEncoder/config.json", normalize=True),
        "normalize is True",
    ),
    "bias": (
        "dense",
        lambda f: change(f, "2_Dense/config.json", bias=True),
        "bias is True",
    ),
    "attended expansion": (
        "multi-vector",
        lambda f: change(
            f,
            "sentence_bert_config.json",
            query_expansion=EXPANSION | {"attend": True},
        ),
        "no token attends",
    ),
    "skipped words of queries": (
        "multi-vector",
        lambda f: change(
            f, "2_MultiVectorMask/config.json", skiplist_tasks=["query", "document"]
        ),
        "skiplist_tasks is",
    ),
    "special tokens of queries": (
        "inference-free",
        lambda f: save_file(
            {"weight": np.ones(8192, np.float32)},
            f / "query_0_SparseStaticEmbedding/model.safetensors",
        ),
        "special tokens .* have weights other than 0",
    ),
    "code of its own": (
        "splade",
        lambda f: (f / "modules.json").write_text(
            (f / "modules.json").read_text().replace("sentence_transformers.b", "b")
        ),
        "code of its own",
    ),
    "words of queries that are others' terms": (
        "inference-free",
        lambda f: swap(f / "query_0_SparseStaticEmbedding", "the", "file"),
        "have different vocabularies",
    ),
    "not JSON": (
        "splade",
        lambda f: (f / "modules.json").write_text("[{"),
        "modules.json is not JSON",
    ),
    "a module without a type": (
        "splade",
        lambda f: (f / "modules.json").write_text('[{"path": "", "type": 5}]'),
        r"modules\.json: .* is no module with a type and a path",
    ),
    "a module's folder": (
        "splade",
        lambda f: shutil.rmtree(f / "1_SpladePooling"),
        r"1_SpladePooling/config\.json is missing",
    ),
    "a backbone's folder": (
        "inference-free",
        lambda f: shutil.rmtree(f / "document_0_Transformer"),
        r"Checkpoint '/.*document_0_Transformer' .* does not exist",
    ),
    "a number of another type": (
        "dense",
        lambda f: change(f, "2_Dense/config.json", out_features="5"),
        r"2_Dense/config\.json: out_features is '5', which has to be a whole number",
    ),
    "a length of another type": (
        "splade",
        lambda f: change(f, "sentence_bert_config.json", max_seq_length=[8]),
        r"max_seq_length is \[8\], which has to be a whole number",
    ),
    "prompts of another type": (
        "dense",
        lambda f: change(f, "config_sentence_transformers.json", prompts=["query: "]),
        r"prompts is \['query: '\], which has to be an object",
    ),
    "routes of another type": (
        "inference-free",
        lambda f: change(f, "router_config.json", structure={"query": 5}),
        r"router_config\.json: query is 5, which has to be a list of strings",
    ),
    "no cut": (
        "splade",
        lambda f: change(f, "config_sentence_transformers.json", max_active_dims=0),
        "max_active_dims is 0; it is null, or a number of weights from 1 on",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_models_are_refused(what, copied, tmp_path):
    name, breaks, message = BROKEN[what]
    folder = copied(name)
    breaks(folder)
    with pytest.raises(InputError, match=message):
        targets.export(str(folder), MODELS[name][0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_older_files_and_null_mean_there(copied):
    folder = copied("dense")
    older(folder, "roberta", max_seq_length=7)
    change(folder, "1_Pooling/config.json", include_prompt=None)
    model = open_model.open_portable(str(folder))
    assert (model.query_length, model.document_length) == (7, 7)
    program = SentenceTransformer(str(folder), device="cpu")
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=4)
    texts = ["", "a file", "a file of a game " * 3]
    (found,) = encoder.encode(model.params, texts, 7, "query").values()
    np.testing.assert_allclose(
        found.toarray(), program.encode_query(texts), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("most", [3, 9])  # less and more than its k
def test_latents_that_are_kept_are_theirs(most, copied):
    folder = copied("csr normalized")
    change(folder, "config_sentence_transformers.json", max_active_dims=most)
    model = open_model.open_portable(str(folder))
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=4)
    texts = ["a file", "a game of tiles"]
    (found,) = encoder.encode(model.params, texts, 20, "document").values()
    program = SparseEncoder(str(folder), device="cpu")
    wanted = program.encode_document(texts).to_dense().numpy()
    np.testing.assert_allclose(found.toarray(), wanted, rtol=0, atol=1e-5)
    assert (found.toarray() > 0).sum(axis=1).max() > 3 * (most > 4)


def test_a_model_that_is_compared_by_cosine_says_so(copied, capsys):
    folder = copied("dense")
    open_model.open_portable(str(folder))
    assert not capsys.readouterr().err
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(listed[:-1]))
    open_model.open_portable(str(folder))
    assert "compares its embeddings by cosine" in capsys.readouterr().err
    change(folder, "config_sentence_transformers.json", similarity_fn_name="dot")
    open_model.open_portable(str(folder))
    assert not capsys.readouterr().err


def test_encoder_of_an_unknown_model_can_be_started_from(copied):
    folder = copied("dense")
    change(folder, "2_Dense/config.json", bias=True)
    opened = open_model.open_model(str(folder), pathlib.Path())
    assert set(opened.params) == {"encoder"}


def test_vectors_of_an_unknown_model_are_not_taken_for_others(copied):
    folder = copied("splade")
    pooling = "1_SpladePooling/config.json"
    change(folder, pooling, activation_function="gelu")
    with pytest.raises(InputError, match="gelu"):
        open_model.open_model(str(folder), pathlib.Path())


@SLOW
@pytest.mark.parametrize("name", [name for name in MODELS if "multi" not in name])
def test_theirs_give_the_same_vectors_here(name, saved):
    kinds = {"dense": SentenceTransformer}
    program = kinds.get(name, SparseEncoder)(str(saved(name)), device="cpu")
    model = open_model.open_portable(str(saved(name)))
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=4)
    texts = ["", "a file", "Größe und 文字 " * 9, "текст: 12%"]
    for role in ("query", "document"):
        length = getattr(model, f"{role}_length")
        (found,) = encoder.encode(model.params, texts, length, role).values()
        wanted = torch.as_tensor(getattr(program, f"encode_{role}")(texts))
        wanted = wanted.to_dense().numpy()
        tolerance = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found.toarray(), wanted, rtol=0, atol=tolerance)
        assert tolerance > 0


def test_a_router_of_two_models_is_read_as_two_towers(tmp_path):
    program = towers(tmp_path)
    program.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    assert (tmp_path / "saved" / "query_1_Pooling").is_dir()
    assert not (tmp_path / "saved" / "document_1_Pooling").exists()  # shared
    model = open_model.open_portable(str(tmp_path / "saved"))
    assert model.spec.towers == "separate"
    assert (model.query_length, model.document_length) == (8, 17)
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=4)
    texts = ["", "a file", "Größe und 文字 " * 9, "текст: 12%"]
    for role in ("query", "document"):
        length = getattr(model, f"{role}_length")
        (found,) = encoder.encode(model.params, texts, length, role).values()
        wanted = getattr(program, f"encode_{role}")(texts)
        tolerance = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found.toarray(), wanted, rtol=0, atol=tolerance)
    # Ours has all modules of a route within it, and gives the same again.
    targets.export(str(tmp_path / "saved"), "dense", tmp_path / "out")
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode_query(texts)
    np.testing.assert_allclose(again, program.encode_query(texts), atol=1e-5)


def test_routers_that_are_no_two_alike_towers_are_refused(tmp_path):
    folder = tmp_path / "saved"
    towers(tmp_path, sizes=(1, 2)).save_pretrained(str(folder), create_model_card=False)
    with pytest.raises(InputError, match="towers of queries and documents differ in"):
        open_model.open_portable(str(folder))
    path = folder / "router_config.json"
    router = json.loads(path.read_text())
    structure = router["structure"]
    for changed, message in (
        ({"query": structure["query"]}, "routes query, but only a route of queries"),
        ({**structure, "query": structure["query"][:1]}, "lists Transformer, Dense"),
        (
            {**structure, "query": ["query_9_Pooling"]},
            "gives no type of query_9_Pooling",
        ),
    ):
        path.write_text(json.dumps(router | {"structure": changed}))
        with pytest.raises(InputError, match=message):
            open_model.open_portable(str(folder))
