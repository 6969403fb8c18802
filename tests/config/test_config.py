import dataclasses
import pathlib
import re
import runpy
import subprocess
import sys
import typing

import pytest
from ml_collections import ConfigDict

from lsrjax.config import schema
from lsrjax.config.check_run import validate
from lsrjax.config.fields import (
    data_set,
    fields,
    get_default,
    load,
    located,
    stages,
)
from lsrjax.config.nodes import entry
from lsrjax.config.other_names import _ELSEWHERE, not_a_field
from lsrjax.errors import InputError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def kl(**fields):
    """A small valid config, with some fields changed."""
    c = get_default()
    c.steps = 10
    c.init.encoder = c.init.head = "folder"
    c.data.source.files = "x.parquet"
    c.data.group_size = 4
    return changed(c, fields)


def alignment(**fields):
    c = get_default()
    c.steps = 10
    c.init.encoder = c.init.head = c.teacher.model = "folder"
    c.data.source.files = "x.parquet"
    c.loss = {"alignment": {}}
    return changed(c, fields)


def infonce(**fields):
    c = get_default()
    c.steps = 10
    c.model.head = "splade"
    c.tokenizer = "embedded:english"
    c.data.source = "debian"
    c.loss = {"infonce": {}}
    return changed(c, fields)


def other(head, **fields):
    """KL with a head that pools no weights of terms over tokens."""
    pooling = {"model__head__pooling": "mean"} if head in ("dense", "csr") else {}
    fields = {"model__head": head, "init__head": ""} | pooling | fields
    return kl(**fields)


def sets(c, **by_name):
    """A config on several data sets, its own files left out."""
    c.data.source = "files"
    c.data.sets = by_name
    return c


def round_robin(**fields):
    """KL on the embedded data, every query in three languages."""
    return kl(
        data__source="debian",
        data__mixing="round_robin",
        data__document_languages={"en": 1, "de": 1, "ja": 1},
        prepare__negatives="bm25",
        prepare__scores="teacher",
        teacher__model="x",
        batch_size=12,
        **fields,
    )


def in_files(files="x", **fields):
    """A data set of files."""
    return data_set(source=entry("files", files=files), **fields)


A, B = in_files("a.jsonl"), data_set(source=entry("datasets", dataset="b"))
EMBEDDED = data_set(source="debian")


def teachers(*weights):
    """The columns of two teachers."""
    columns = {"pos_scores": ("a", "b"), "neg_scores": ("c", "d")}
    return entry("milco", **columns, score_weights=weights)


def changed(c, fields):
    for name, value in fields.items():
        *groups, last = name.replace("__", ".").split(".")
        node = c
        for group in groups:
            node = node[group]
        node[last] = value
    return c


def run_of(**by_name):
    c = get_default()
    c.stages = by_name
    return c


def refusal(c):
    with pytest.raises(InputError) as error:
        validate(c)
    return str(error.value)


def test_all_errors_are_named_at_once():
    first = kl(optim__lr=-1.0, steps=5, epochs=2)
    second = kl(steps=5, epochs=2, data__positives=9)
    second.unlock()
    second.learning_rate = 1.0
    with pytest.raises(InputError) as error:
        validate(run_of(first=first, second=second))
    said = [one.partition(" ")[0].rstrip(":") for one in error.value.args]
    at = "config.stages"
    assert said == [
        f"{at}.second.learning_rate",
        f"{at}.first.optim.lr",
        f"{at}.second",
        f"{at}.second.data.positives",
    ]
    assert str(error.value).startswith(f"4 errors:\n- {at}.second.learning_rate is no")
    # What is written as in an earlier release says nothing of the rest.
    moved = kl(data__query_languages="en:5,*:1", optim__lr=-1.0)
    assert "query_languages" in refusal(moved) and "lr" not in refusal(moved)
    # Nor is there advice to remove what another error asks for.
    asked = kl(prepare__negatives="bm25", teacher__model="x")
    assert "set it to 'teacher', and teacher.model" in refusal(asked)
    assert "Remove it" not in refusal(asked)


def test_a_stage_or_a_data_set_that_is_no_config_is_named():
    said = refusal(run_of(first=kl, second={"batch_size": 3}))
    assert "config.stages.first is <function kl" in said
    assert "config.stages.second is {'batch_size': 3}; start from lsr" in said
    said = refusal(sets(kl(), a=3, b=in_files()))
    assert "config.data.sets.a is 3; start from lsrjax.config.data_set()" in said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    validate(runpy.run_path(str(path))["get_config"]())


@pytest.mark.parametrize("make", [kl, alignment, infonce])
def test_small_configs_are_valid(make):
    validate(make())
    validate(run_of(one=make(), two=make()))


@pytest.mark.parametrize(
    "c",
    [
        kl(prepare__scores="teacher", teacher__model="folder"),
        kl(
            prepare__scores="teacher",
            teacher__model="folder",
            teacher__prompt="{document} {query}?",
            teacher__yes="Yes",
            teacher__no="",
        ),
        kl(prepare__negatives="bm25", prepare__scores="teacher", teacher__model="x"),
        kl(
            model__head__lexecho=True,
            model__head__repeats="max",
            regularizer__source_query=0.1,
        ),
        kl(
            data__format=entry("milco", pos="positive"),
            dev__source=entry("files", files="dev.jsonl"),
        ),
        alignment(dev__source="debian", data__query_languages={"ja": 1}, dev__every=5),
        alignment(data__format="alignment", data__query_languages={"ja": 1, "*": 2}),
        infonce(init__lexical=True, model__head__tied=False, model__hidden_size=8),
        infonce(
            dev__source=entry("files", files=["x", "y,z"]),
            dev__format=entry("milco", pos="positive"),
        ),
        infonce(data__group_size=3, prepare__negatives="bm25", data__mixing="entries"),
        infonce(steps=0, epochs=0.5),
        kl(mesh__data=2, mesh__model=-1, mesh__fsdp=True),
        kl(memory__encode_chunk=8, memory__remat="dots", data__length_parts=1),
        kl(loss={"kl": {}, "margin_mse": {"weight": 0.05, "margins": "all"}}),
        kl(loss={"infonce": {"false_negative_margin": 1.0}}),
        kl(loss={"kl": {}, "infonce": {"weight": 0.1, "temperature": 0.5}}),
        infonce(loss={"infonce": {"both_directions": True, "mask_same_text": False}}),
        infonce(loss={"infonce": {"weight": 0.9}, "passage_centric": {"weight": 0.1}}),
        infonce(loss={"mann_whitney": {"temperature": 0.1}}),
        kl(
            loss={"cosent": {"similarity": "score"}, "infonce": {}},
            data__format=entry("labelled", grades=True),
            data__group_size=1,
        ),
        kl(
            loss={"wasserstein": {}, "listnet": {"in_batch": True}},
            data__format=entry("beir", grades=True),
        ),
        kl(
            regularizer__name="masked_flops",
            regularizer__threshold=50,
            regularizer__document=0.1,
            regularizer__anti_zero=0.1,
        ),
        kl(regularizer__name="joint_flops", regularizer__document=0.1),
        kl(
            regularizer__query=0.1,
            regularizer__active_query=20.0,
            regularizer__active_gain=0.1,
        ),
        infonce(regularizer__anti_zero=0.1),
        kl(data__negatives=entry("rank", scale=3.0), data__positives=2),
        kl(loss={"infonce": {"both_directions": True}}, data__positives=2),
        infonce(dro__groups="languages", dro__rate=0.1),
        kl(dro__groups="languages"),  # rows may name them
        infonce(dro__groups="topics", data__topics=9),
        kl(data__negatives=entry("margin_bins", bins=4), data__topics=9),
        kl(data__negative_max_score=3, data__negative_margin=0.0),
        infonce(data__unique_texts=True, data__topics=9),
        infonce(
            data__group_size=3,
            data__negatives="margin_bins",
            prepare__negatives="bm25",
            prepare__scores="teacher",
            teacher__model="x",
        ),
        kl(
            data__corpus={"en": "d.tsv", "*": "e.tsv"},
            data__document_languages={"ja": 1, "*": 1},
        ),
        kl(
            data__corpus={"en": {"dataset": "me/docs", "split": "t"}, "de": ["d.tsv"]},
            data__document_languages={"en": 1, "de": 0},
        ),
        kl(data__corpus=["d.tsv", "e.tsv"], data__source__files=["x.gz", "y.gz"]),
        kl(
            data__corpus="d.tsv",
            data__format=entry("colbert", queries={"en": "q.tsv", "de": "r.tsv"}),
            data__query_languages={"de": 1},
        ),
        infonce(batch_size=1, data__group_size=2, prepare__negatives="bm25"),
        infonce(model__head__queries="words", regularizer__document=0.1),
        other("csr", log__health=True, loss={"reconstruction": {}, "kl": {}}),
        round_robin(),
        round_robin(loss={"kl": {}, "language_kl": {"weight": 0.5, "temperature": 2}}),
        infonce(log__health=True),
        round_robin(data__negative_margin=1.0, data__unique_texts=True),
        sets(kl(data__mixer="weights", data__batches_from="one"), a=A, b=B),
        sets(kl(data__mixer=entry("weights", weights={"b": 2.0})), a=A, b=B),
        sets(kl(data__mixer=entry("temperature", temperature=3.0)), a=A),
        sets(
            kl(
                dev__source=entry("files", files="x"),
                dev__format=entry("milco", pos="p"),
            ),
            a=A,
        ),
        sets(infonce(data__document_languages={"en": 1}), a=A, b=EMBEDDED),
        run_of(one=alignment(), two=sets(kl(), a=A)),
        kl(model__towers="separate", optim__freeze="^query_tower/encoder/"),
        infonce(steps=20, optim__warmup_steps=20),
    ],
)
def test_sensible_combinations_are_accepted(c):
    validate(c)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("optim.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("optimizer.lr", "optim.lr"),
        ("optim.wd", "optim.weight_decay"),
        ("save_steps", "checkpoint.every"),
        ("max_steps", "steps"),
        ("training.num_train_epochs", "epochs"),
        ("per-device-train-batch-size", "batch_size"),
        ("data.qeury_length", "data.query_length"),
        ("output_dir", "--workdir"),
        ("data.train_file", "c.data.source.files"),
        ("gradient_accumulation_steps", "c.memory.encode_chunk"),
        ("optimizer", "optim.optimizer"),
        ("adam_beta2", "c.optim.optimizer.b2"),
    ],
)
def test_names_from_elsewhere_are_known(name, meant):
    known = list(fields(get_default()))
    message = not_a_field(name, known)
    at = meant if meant.startswith(("--", "c.")) else f"config.{meant}"
    assert re.search(rf"{re.escape(at)}(?![\w.]\w)", message), message


def test_a_name_from_elsewhere_means_the_field_of_its_own_stage():
    known = [f"stages.{s}.{f}" for s in ("one", "two") for f in fields(get_default())]
    message = not_a_field("stages.two.optim.learning_rate", known)
    assert "the nearest is config.stages.two.optim.lr." in message


def test_every_name_from_elsewhere_leads_to_a_field():
    # A field that is renamed takes its names with it.
    assert set(_ELSEWHERE) <= set(fields(get_default()))


def test_the_test_of_a_run_of_stages_is_looked_at():
    c = get_default()
    c.stages = ConfigDict({"one": infonce()}, sort_keys=False)
    c.evaluate.test = "nan"
    assert "config.evaluate.test is 'nan'" in refusal(c)


def test_unknown_fields_name_the_nearest():
    c = kl()
    with c.unlocked():
        c.optim.learning_rate = 1.0
    assert "config.optim.learning_rate is not a field; the nearest is" in refusal(c)
    c = kl()
    with c.unlocked():
        c.data.group_sise = 2
    message = refusal(run_of(first=alignment(), second=c))
    assert "config.stages.second.data.group_sise is not a field" in message
    assert "nearest is config.stages.second.data.group_size" in message
    c = get_default()
    with c.unlocked():
        del c.optim.lr
    assert "config.optim.lr is missing" in refusal(c)


def choices(kind=schema.Run, prefix=""):
    """The fields that are one of several words, and these."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from choices(hints[field.name], f"{prefix}{field.name}.")
        elif field.metadata["choices"] and isinstance(field.default, str):
            yield f"{prefix}{field.name}", field.metadata["choices"]
        elif field.metadata["table"] is not None:
            yield f"{prefix}{field.name}", tuple(field.metadata["table"])


def test_choices_are_declared():
    found = dict(choices())
    assert found["optim.schedule"] == ("constant", "linear", "cosine")
    assert "flops" in found["regularizer"] and len(found) > 15


@pytest.mark.parametrize(("field", "known"), choices(), ids=str)
def test_unknown_choices_list_the_known(field, known):
    message = refusal(changed(kl(), {field: "nonsense"}))
    assert f"config.{field} is 'nonsense'; known: " in message
    for choice in known:
        assert repr(choice) in message


@pytest.mark.parametrize(
    ("c", "field", "because"),
    [
        (kl(init__idf_echo=True), "init.idf_echo", "lexecho is off"),
        (kl(regularizer__source_document=1.0), "source_document", "lexecho is off"),
        (alignment(model__towers="separate"), "model.towers", "no queries and doc"),
        (
            alignment(
                model__head="splade", init__head="", model__head__queries="words"
            ),
            "model.head.queries",
            "alignment has no queries and documents",
        ),
        (
            infonce(model__head__queries="words", model__towers="separate"),
            "model.towers",
            "queries of the head splade are not encoded",
        ),
        (kl(model__hidden_size=64), "hidden_size", "weights come from init.encoder"),
        (
            kl(init__head={"model": "x", "encoder": "shared"}),
            "init.head.encoder",
            "the weights come from init.encoder",
        ),
        (kl(model__head="splade"), "init.head", "the head splade copies no other"),
        (kl(init__lexical=True), "init.lexical", "the head milco is no bag of"),
        (
            other("splade", init__lexical=True),
            "init.lexical",
            "the weights come from init.encoder",
        ),
        (kl(data__mixer="weights"), "data.mixer", "data.sets is empty"),
        (kl(data__batches_from="one"), "data.batches_from", "data.sets is empty"),
        (
            changed(sets(kl(), a=A), {"data.source.files": "x"}),
            "data.source.files",
            "sets has its",
        ),
        (
            sets(kl(data__format=entry("milco", pos="p")), a=A),
            "data.format",
            "sets has its own",
        ),
        (sets(kl(data__mixing="entries"), a=A), "data.mixing", "several languages"),
        (alignment(data__topics=3), "data.topics", "no queries"),
        (alignment(data__unique_texts=True), "data.unique_texts", "no queries"),
        (infonce(data__negatives="top"), "data.negatives", "group_size is 1"),
        (infonce(data__negative_margin=1.0), "negative_margin", "group_size is 1"),
        (kl(data__mixing="entries"), "data.mixing", "several languages"),
        (
            kl(data__document_languages={"en": 1}),
            "document_languages",
            "several languages",
        ),
        (infonce(data__format="milco"), "data.format", "its own format"),
        (infonce(data__corpus="c.tsv"), "data.corpus", "its own format"),
        (kl(data__format="milco", data__corpus="c"), "data.corpus", "holds texts"),
        (
            kl(data__format=entry("milco", score_weights=(2, 1))),
            "score_weights",
            "names one teacher",
        ),
        (
            infonce(
                data__source=entry("files", files="x"),
                data__format=entry("triplet", score_normalization="zscore"),
            ),
            "score_normalization",
            "no scores are read",
        ),
        (
            kl(
                dev__source=entry("files", files="x"),
                dev__format=entry("milco", pos_scores="p"),
            ),
            "dev.format.pos_scores",
            "scores of dev data are not read",
        ),
        (kl(data__corpus="c.tsv", data__mixing="entries"), "mixing", "several"),
        (infonce(dev__source="debian", dev__format="milco"), "dev.format", "its own"),
        (alignment(data__group_size=4), "group_size", "no queries"),
        (alignment(regularizer__query=1.0), "regularizer.query", "no queries"),
        (
            kl(loss={"margin_mse": {"margins": "all"}}, data__group_size=2),
            "loss.margin_mse.margins",
            "a single margin",
        ),
        (
            infonce(data__format=entry("milco", pos="p")),
            "data.format",
            "the source has its own format",
        ),
        (infonce(prepare__negatives="bm25"), "prepare.negatives", "group_size is 1"),
        (infonce(teacher__model="x"), "teacher.model", "asks no teacher"),
        (infonce(prepare__scores="teacher", teacher__model="x"), "scores", "no scores"),
        (kl(teacher__model="x"), "teacher.model", "prepare.scores is given"),
        (kl(dro__rate=0.5), "dro.rate", "groups is empty"),
        (alignment(dro__groups="languages"), "dro.groups", "no queries and documents"),
        (kl(prepare__depth=9), "prepare.depth", "negatives is given"),
        (kl(regularizer__name="flops"), "regularizer.name", "every lambda is 0"),
        (
            kl(regularizer__schedule=entry("linear", steps=5)),
            "regularizer.schedule",
            "every lambda is 0",
        ),
        (
            kl(regularizer__query=1.0, regularizer__active_document=9.0),
            "regularizer.active_document",
            "the lambda 'document', which it steers, is 0",
        ),
        (
            kl(regularizer__query=1.0, regularizer__active_gain=0.5),
            "regularizer.active_gain",
            "no lambda is steered",
        ),
        (alignment(regularizer__anti_zero=1.0), "anti_zero", "no queries"),
        (kl(optim__weight_decay=0.0, optim__no_decay="x"), "no_decay", "decay is 0"),
        (
            infonce(model__head__pooling="sum", model__head__pool_mask="multiply"),
            "pool_mask",
            "no maximum over tokens with pooling = 'sum'",
        ),
        *(
            (other(head, log__health=True), "log.health", f"the head {head} has views")
            for head in ("dense", "colbert", "m3")
        ),
        (other("csr", model__head__dead_after=5), "dead_after", "kl does not read it"),
        (
            other("csr", model__head__revived_latents=5),
            "revived_latents",
            "kl does not read it",
        ),
        (
            infonce(model__head__queries="words", regularizer__query=0.1),
            "regularizer.query",
            "each word of a query weighs 1",
        ),
        (
            alignment(
                model__head="splade", init__head="", model__head__queries="static"
            ),
            "model.head.queries",
            "alignment has no queries",
        ),
        (
            kl(
                data__format=entry("colbert", queries="q.tsv"),
                data__corpus="d.tsv",
                data__query_languages={"en": 1},
            ),
            "query_languages",
            "several languages",
        ),
        (
            kl(
                data__format=entry("colbert", queries="q.tsv"),
                data__corpus={"en": "d.tsv"},
                data__query_languages={"en": 1},
            ),
            "query_languages",
            "those that the format looks up",
        ),
        (
            sets(
                infonce(data__batches_from="one", data__language_temperature=2.0),
                a=A,
                b=B,
            ),
            "data.language_temperature",
            "batches are of a set, in any language",
        ),
        (
            kl(data__mixing="query"),
            "data.mixing",
            "those of a corpus",
        ),
        (
            kl(
                data__format=entry("colbert", queries={"en": "q.tsv"}),
                data__corpus="d",
                data__mixing="entries",
            ),
            "data.mixing",
            "those of a corpus",
        ),
        (
            kl(
                prepare__scores="teacher",
                teacher__model="x",
                data__format=entry("milco", pos_scores="p"),
            ),
            "format.pos_scores",
            "no scores are read",
        ),
        (kl(teacher__beside={"bm25": 1.0}), "teacher.beside", "scores no documents"),
        (
            alignment(teacher__score_normalization="minmax"),
            "teacher.score_normalization",
            "scores no documents",
        ),
        (kl(dev__every=5), "dev.every", "dev.source is empty"),
        (kl(dev__format="beir"), "dev.format", "dev.source is empty"),
        (kl(evaluate__examples=("ja",)), "evaluate.examples", "test is empty"),
    ],
)
def test_options_without_effect_are_refused(c, field, because):
    message = refusal(c)
    assert "would have no effect" in message
    assert field in message and because in message and "Remove it" in message


@pytest.mark.parametrize(
    ("c", "field"),
    [
        (alignment(loss={"alignment": {"temperature": 2.0}}), "loss.temperature"),
        (infonce(loss={"infonce": {"teacher_scale": 2.0}}), "loss.teacher_scale"),
        (kl(loss={"kl": {"margins": "all"}}), "loss.margins"),
        (kl(loss={"kl": {"mask_same_text": False}}), "loss.mask_same_text"),
        (kl(loss={"kl": {"both_directions": True}}), "loss.both_directions"),
        (kl(loss={"kl": {"false_negative_margin": 1}}), "loss.false_negative_margin"),
        (infonce(model__head__lexecho=True), "model.head.lexecho"),
        *(
            (other(head, model__head__pool_mask="multiply"), "model.head.pool_mask")
            for head in ("token_weights", "dense", "csr", "colbert", "m3")
        ),
        (kl(regularizer__query=1.0, regularizer__threshold=5), "regularizer.threshold"),
        (kl(regularizer__threshold=5), "regularizer.threshold"),
        (
            kl(
                regularizer__name="joint_flops",
                regularizer__query=1.0,
                regularizer__document=1.0,
            ),
            "regularizer.query",
        ),
        (
            kl(
                regularizer__query=1.0,
                regularizer__schedule=entry("constant", steps=5),
            ),
            "regularizer.schedule.steps",
        ),
        (kl(data__source=entry("files", files="x", split="dev")), "data.source.split"),
        (kl(data__source=entry("files", dataset="a/b")), "data.source.dataset"),
        (kl(data__source=entry("tfds", fields=("text",))), "data.source.fields"),
        (infonce(data__source=entry("debian", dataset="x")), "data.source.dataset"),
        (sets(kl(), a=in_files(format=entry("auto", english="e"))), "a.format.english"),
        (
            sets(infonce(), a=data_set(source=entry("debian", dataset="x"))),
            "data.sets.a.source.dataset",
        ),
        (infonce(dev__source=entry("debian", dataset="x")), "dev.source.dataset"),
        (kl(data__format=entry("tevatron", queries="q")), "data.format.queries"),
        (kl(data__format=entry("milco", min_label=2.0)), "data.format.min_label"),
        (kl(data__format=entry("triplet", pos="p")), "data.format.pos"),
        (
            alignment(data__format=entry("alignment", score_normalization="zscore")),
            "data.format.score_normalization",
        ),
        (alignment(data__format=entry("alignment", pos="p")), "data.format.pos"),
        (kl(data__negatives=entry("top", scale=2.0)), "data.negatives.scale"),
        (kl(data__negatives=entry("rank", bins=4)), "data.negatives.bins"),
        (
            sets(kl(data__mixer=entry("weights", temperature=3.0)), a=A),
            "data.mixer.temperature",
        ),
        (
            sets(kl(data__mixer=entry("proportional", weights={"a": 1})), a=A),
            "data.mixer.weights",
        ),
    ],
)
def test_options_that_an_entry_lacks_are_refused(c, field):
    message = refusal(c)
    entry_of, _, option = field.rpartition(".")
    assert re.search(
        rf"config\.[\w.]*{entry_of}(\.\w+)?\.{option} is no option", message
    )
    assert "have it. " in message


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (kl(steps=0), "config: steps is 0 and epochs is 0.0; set one of them"),
        (kl(epochs=1.0), "config: steps is 10 and epochs is 1.0; set one of them"),
        (kl(optim__warmup_steps=1, optim__warmup_fraction=0.1), "set one of them"),
        (kl(optim__warmup_steps=11), "warmup_steps is 11, but the stage has 10 steps"),
        (kl(batch_size=2**62), f"config.batch_size is {2**62}; it is at most"),
        (kl(data__threads=2**40), f"config.data.threads is {2**40}; it is at most"),
        (kl(watchdog__seconds=1e30), "config.watchdog.seconds is 1e+30; it is at most"),
        (kl(steps=0, epochs=1e9), "config.epochs is 1000000000.0; it is at most"),
        (kl(seed=2**40), f"config.seed is {2**40}; it is at most"),
        (kl(model__dropout=-0.5), "or -1 for that of the checkpoint"),
        (kl(watchdog__seconds=None), "config.watchdog.seconds is None; give a value"),
        (kl(data__format=None), "config.data.format is None; give a value"),
        (kl(optim__lr=1e300), "config.optim.lr is 1e+300; give a finite number"),
        (
            kl(evaluate__test="debian", evaluate__examples=(1, 2)),
            "examples is (1, 2); it must be a list (text each)",
        ),
        (
            kl(evaluate__test="nan"),
            "config.evaluate.test is 'nan'; known: '', 'debian'",
        ),
        (kl(data__group_size=1), "kl compares a query's documents"),
        (kl(loss={"mse": {}}), "config.loss is 'mse'; known: 'alignment', "),
        (
            run_of(one=kl(loss={"kl": {"weight": 0}})),
            "config.stages.one.loss.kl.weight is 0.0; it must be > 0",
        ),
        (kl(loss={"kl": {}, "alignment": {}}), "in stages of their own"),
        (
            kl(loss={"infonce": {"temperature": 0.0}}),
            "loss.infonce.temperature is 0.0; it must be > 0",
        ),
        (
            infonce(loss={"infonce": {"false_negative_margin": -1.0}}),
            "false_negative_margin is -1.0; it must be >= 0",
        ),
        (
            infonce(loss={"infonce": {"false_negative_margin": 1.0}}),
            "the loss infonce compares a query's documents",
        ),
        (
            kl(loss={"margin_mse": {}}, data__group_size=1),
            "the loss margin_mse compares a query's documents",
        ),
        (
            kl(loss={"cosent": {}, "listnet": {}}, data__group_size=1),
            "the loss cosent + listnet compares a query's documents",
        ),
        (
            kl(loss={"angle": {}}),
            "loss.angle needs one embedding as its only view, which the head milco does"
            " not have. Use dense, or another loss.",
        ),
        *(
            (
                kl(loss={"kl": {}, name: {}}, data__positives=2),
                f"loss.{name} takes the first document for the only positive",
            )
            for name in ("mann_whitney", "passage_centric")
        ),
        *(
            (
                infonce(loss={name: {}}, data__group_size=1, batch_size=1),
                f"loss.{name} compares the documents of a batch",
            )
            for name in ("mann_whitney", "passage_centric")
        ),
        (
            kl(
                loss={"cosent": {}},
                data__format=entry("labelled", min_label=0.0),
                data__group_size=1,
            ),
            "whose rows lack scores. Set config.prepare.scores to 'teacher', or use a"
            " loss and negatives without scores. If labels are the scores:"
            " config.data.format.grades = True.",
        ),
        (
            kl(
                loss={"infonce": {}},
                data__format=entry("labelled", grades=True),
                data__group_size=1,
            ),
            "format.grades = True would have no effect: no scores are read",
        ),
        (
            kl(data__source="files"),
            "config.data.source.files is '', but the source files needs it",
        ),
        (kl(dev__source="files"), "config.dev.source.files is ''"),
        (kl(prepare__scores="teacher"), "config.teacher.model is ''"),
        (infonce(loss={"batch_kl": {}}), "config.teacher.model is ''"),
        (kl(dro__groups="sets"), "dro.groups is 'sets', but data.sets has no two"),
        (
            kl(dro__groups="languages", data__format="colbert", data__corpus="c.tsv"),
            "the queries are in no two stated languages",
        ),
        (kl(dro__groups="topics"), "dro.groups is 'topics', but data.topics is 0"),
        (kl(dro__groups="worst"), "known: '', 'languages', 'sets', 'topics'"),
        (
            round_robin(
                dro__groups="languages",
                loss={"kl": {}, "language_kl": {"weight": 0.5}},
            ),
            "which weighs queries, but the loss language_kl has no value for each",
        ),
        (infonce(loss={"embedding": {}}), "config.teacher.model is ''"),
        (
            other("colbert", loss={"embedding": {}}, teacher__model="x"),
            "embedding needs a vector of each text (its first view), which the head",
        ),
        *(
            (
                infonce(loss={name: {}}, teacher__model="x", batch_size=1),
                f"config.loss.{name} compares the documents of a batch, but batch_size",
            )
            for name in ("batch_kl", "batch_margin_mse")
        ),
        (
            kl(
                loss={"batch_kl": {}},
                teacher__model="x",
                data__format="tevatron_ids",
                data__corpus={"de": "c.tsv"},
            ),
            "corpus is in de, but the loss's teacher reads texts in English: add the",
        ),
        (
            kl(
                prepare__scores="teacher",
                teacher__model="folder",
                teacher__prompt="{query} {query} {document}",
            ),
            "teacher.prompt is '{query} {query} {document}'; it needs {query} and"
            " {document}, each once",
        ),
        (
            kl(
                prepare__scores="teacher",
                teacher__model="x",
                teacher__beside={"stage:later": 1.0},
            ),
            "config.teacher.beside['stage:later'] is 'stage:later', but the stages",
        ),
        (
            kl(
                prepare__scores="teacher",
                teacher__model="x",
                teacher__beside={"bm25": 0.0},
            ),
            "teacher.beside is {'bm25': 0.0}; weights are > 0",
        ),
        (
            kl(prepare__scores="teacher", teacher__model="x", teacher__yes="Yes"),
            "teacher.yes = 'Yes' would have no effect: prompt is empty",
        ),
        (
            alignment(teacher__prompt="{query} {document}"),
            "would have no effect: the teacher scores no documents",
        ),
        (kl(prepare__negatives="bm25"), "mined negatives come without scores"),
        (alignment(teacher__model=""), "config.teacher.model is ''"),
        (alignment(init__head=""), "config.init.head is missing"),
        (alignment(init__head={"model": ""}), "init.head.model is ''; name a model"),
        (infonce(init__lexical=3), "config.init.lexical is 3; give its options by"),
        (infonce(init__lexicla=True), "config.init is 'lexicla'; known: 'model',"),
        (infonce(tokenizer=""), "config.tokenizer is ''"),
        (infonce(data__group_size=2), "no negatives: set prepare.negatives"),
        (
            infonce(data__source=entry("debian", split="valid")),
            "config.data.source.split is 'valid'; known: '', 'train', 'dev', 'test'",
        ),
        (kl(data__source="tfds"), "config.data.source.dataset is ''"),
        (kl(data__format="tevatron_ids"), "config.data.corpus is ''"),
        (
            kl(data__format="colbert", data__corpus="c"),
            "config.data.format.queries is ''",
        ),
        (
            kl(data__format=entry("milco", pos_scores=["a", "b"])),
            "one column of each teacher in both",
        ),
        (kl(data__format=teachers(1, 2, 3)), "has 3 weights for the 2 teachers"),
        *(
            (
                kl(data__format=teachers(*weights)),
                "config.data.format.score_weights is " + shown,
            )
            for weights, shown in {
                ("a",): "('a',); it must be a list (a number each)",
                (0, 0): "(0.0, 0.0); give numbers >= 0, one of them > 0",
                (-1, 2): "(-1.0, 2.0); give numbers >= 0",
                (float("nan"), 1): "(nan, 1.0); give numbers >= 0",
                (float("inf"), 1): "(inf, 1.0); give numbers >= 0",
            }.items()
        ),
        (
            kl(
                data__format="tevatron_ids",
                data__corpus={"de": "c.tsv"},
                prepare__scores="teacher",
                teacher__model="x",
            ),
            "config.data: corpus is in de, but what config.prepare does is done in",
        ),
        *(
            (
                kl(data__corpus=corpus),
                "config.data.corpus is " + repr(corpus) + "; give",
            )
            for corpus in (
                {"en": 3},
                ["a.tsv", 1],
                {"dataset": "a/b", "subsets": "c"},
                {"en": {"dataset": "a/b", "splits": "c"}},
            )
        ),
        (infonce(data__length_parts=0), "data.length_parts is 0; it must be > 0"),
        (infonce(data__length_multiple=0), "length_multiple is 0; it must be > 0"),
        (kl(mesh__data=0), "config.mesh.data is 0; it is a number of devices, or -1"),
        (kl(mesh__model=-2), "config.mesh.model is -2; it is a number of devices, or"),
        (kl(memory__encode_chunk=-1), "encode_chunk is -1; it must be >= 0"),
        (kl(optim__lr=0.0), "config.optim.lr is 0.0; it must be > 0"),
        (kl(regularizer__query=-1.0), "regularizer.query is -1.0; it must be >= 0"),
        (kl(seed=-1), "config.seed is -1; it must be >= 0"),
        (kl(model__dropout=1.0), "config.model.dropout is 1.0; it must be < 1"),
        (kl(optim__freeze="("), "config.optim.freeze is '('; not a regular expression"),
        (
            kl(regularizer__query=1.0, regularizer__schedule="linear"),
            "config.regularizer.schedule.steps is 0; it must be > 0",
        ),
        (
            kl(regularizer__name="masked_flops", regularizer__query=1.0),
            "config.regularizer.threshold is 0; it must be > 0",
        ),
        (kl(regularizer__active_query=-1.0), "active_query is -1.0; it must be >= 0"),
        (kl(regularizer__active_gain=0.0), "active_gain is 0.0; it must be > 0"),
        (kl(regularizer__anti_zero=-1.0), "anti_zero is -1.0; it must be >= 0"),
        (kl(init__model="x"), "init: model gives the whole retriever; leave encoder"),
        (
            infonce(
                model__head__queries="static",
                init={"model": "x", "idf_queries": {}},
            ),
            "model gives the whole retriever; leave idf_queries out",
        ),
        (
            kl(
                init__encoder="",
                tokenizer="x",
                init__head={"model": "x", "encoder": "translations"},
            ),
            "encoder = 'translations' needs training pairs, and the loss kl has none",
        ),
        (
            infonce(dev__source="debian", dev__metric="nDGC@10"),
            "config.dev.metric is 'nDGC@10'",
        ),
        (
            sets(kl(), a=data_set()),
            "config.data.sets.a.source.files is '', but the source",
        ),
        (sets(kl(), a=data_set(source="x")), "config.data.sets.a.source is 'x'; known"),
        (
            sets(infonce(), a=data_set(source=entry("debian", split="x"))),
            "config.data.sets.a.source.split is 'x'; known: '', 'train'",
        ),
        (
            sets(kl(data__mixer=entry("weights", weights={"a": 0.0})), a=A),
            "config.data.mixer.weights is {'a': 0.0}; weights are > 0",
        ),
        (
            sets(kl(data__mixer=entry("weights", weights={"b": 2.0})), a=A),
            "config.data.mixer.weights names b; data.sets has a.",
        ),
        (sets(kl(data__topics=3), a=A), "data.topics is 3, but data.sets has several"),
        (sets(kl(), a=EMBEDDED), "the embedded queries come without scores"),
        (
            sets(infonce(data__document_languages={"xx": 1}), a=EMBEDDED),
            "names xx, but the texts are in da, de, en",
        ),
        (kl(data__positives=4), "group_size is 4: a group needs a negative, too"),
        (
            sets(
                kl(loss={"infonce": {}}, data__positives=2, data__batches_from="one"),
                a=A,
                b=in_files(group_size=1),
            ),
            "group_size is 1: a group needs a negative, too",
        ),
        (
            sets(
                kl(
                    loss={"batch_margin_mse": {}},
                    teacher__model="x",
                    batch_size=1,
                    data__batches_from="one",
                ),
                a=A,
                b=in_files(group_size=1),
            ),
            "loss.batch_margin_mse compares the documents of a batch",
        ),
        (
            infonce(data__positives=2, data__group_size=3, prepare__negatives="bm25"),
            "config.prepare makes has one positive for each query",
        ),
        (
            other("csr", loss={"reconstruction": {}}, data__positives=2),
            "reconstruction takes the first document for the only positive",
        ),
        (
            kl(data__positives=2, prepare__scores="teacher", teacher__model="x"),
            "config.prepare makes has one positive",
        ),
        (round_robin(data__negatives="top"), "mined negatives come in random order"),
        (
            infonce(
                data__group_size=8,
                prepare__negatives="bm25",
                prepare__count=7,
                prepare__depth=6,
            ),
            "config.prepare.count is 7, more than the 6 documents",
        ),
        (kl(data__negative_margin=float("nan")), "negative_margin is not a number"),
        (
            infonce(
                data__group_size=3,
                prepare__negatives="bm25",
                data__negative_max_score=1.0,
            ),
            "mined negatives come without scores",
        ),
        (
            infonce(
                data__group_size=3,
                prepare__negatives="bm25",
                data__mixing="round_robin",
                data__document_languages={"en": 1, "de": 1},
            ),
            "'round_robin', which repeats a query and its teacher scores",
        ),
        (
            kl(loss={"kl": {}, "language_kl": {"weight": 0.5}}),
            "data.mixing = 'passages' shows it in one. Set it to 'round_robin'",
        ),
        (
            round_robin(loss={"language_kl": {}}),
            "language_kl alone is met by equal scores of all documents",
        ),
        (
            infonce(model__head="dense", model__head__pooling="cls", log__health=True),
            "log.health = True would have no effect: the head dense has views that are",
        ),
        (
            changed(round_robin(), {"batch_size": 13}),
            "3 languages, but config.batch_size is 13",
        ),
        *(
            (
                changed(round_robin(), {"data.document_languages": languages}),
                f"document_languages is {languages!r}, but data.mixing = 'round_robin'",
            )
            for languages in (
                {"*": 1},
                {"en": 1},
                {"en": 2, "de": 1},
                {"en": 1, "*": 1},
            )
        ),
        (
            other("m3", model__head__view_weights=(1.0, 2.0)),
            "model.head.view_weights is (1.0, 2.0); give",
        ),
        (
            kl(loss={"m3": {"view_weights": (0.0, 0.0, 0.0)}}),
            "loss.m3.view_weights is (0.0, 0.0, 0.0",
        ),
        (
            kl(loss={"m3": {"view_weights": (-1.0, 0.0, 1.0)}}),
            "give three numbers >= 0",
        ),
        *(
            (kl(optim__groups=groups), f"config.optim.groups is {groups!r}; {said}")
            for groups, said in (
                ({"(": {"lr": 1.0}}, "'(' is not a regular expression"),
                ({"": {"lr": 1.0}}, "'' is empty"),
                ({"head": {}}, "'head' sets nothing; give it times or lr"),
                ({"head": {"decay": 1.0}}, "'head' sets ['decay']; give it times"),
                ({"head": {"lr": 1.0, "times": 2.0}}, "'head' has a learning rate and"),
                ({"head": {"times": 0.0}}, "'head': lr and times must be > 0"),
                ({"head": {"weight_decay": -1.0}}, "'head': lr and times must be"),
                ({"head": {"lr": float("nan")}}, "'head': lr and times must be > 0"),
            )
        ),
        (
            kl(optim__groups={"head": 1e-3}),
            "config.optim.groups is {'head': 0.001}; it",
        ),
        (
            kl(optim__optimizer="adam"),
            "config.optim.optimizer is 'adam'; known: 'adamw'",
        ),
        (
            kl(optim__optimizer=entry("lion", eps=1.0)),
            "config.optim.optimizer.eps is no option of 'lion'; 'adamw' and 'muon'",
        ),
        (
            kl(optim__optimizer=entry("sgd", momentum=0.0, nesterov=True)),
            "optim.optimizer.nesterov = True would have no effect: momentum is 0",
        ),
        (
            kl(optim__optimizer="optax.sgd"),
            "'optax.sgd', which is no lsrjax.optimizers.Optimizer but function",
        ),
        (
            kl(optim__optimizer__b1=1.0),
            "config.optim.optimizer.b1 is 1.0; it must be < 1",
        ),
        (
            kl(optim__optimizer__eps=0.0),
            "config.optim.optimizer.eps is 0.0; it must be > 0",
        ),
        (kl(optim__lr=float("nan")), "config.optim.lr is nan; give a finite number"),
        (
            kl(regularizer__query=float("inf")),
            "regularizer.query is inf; give a finite",
        ),
        (
            kl(loss={"kl": {"teacher_scale": -1.0}}),
            "config.loss.kl.teacher_scale is -1.0; it must be > 0",
        ),
        (
            kl(loss={"reconstruction": {"auxiliary": -1.0}}),
            "config.loss.reconstruction.auxiliary is -1.0; it must be >= 0",
        ),
        (
            kl(model__head__lexecho=True, init__idf_echo={"scale": 0.0}),
            "init.idf_echo.scale is 0.0; it must be > 0",
        ),
        (kl(data__query_length=2), "data.query_length is 2; two tokens of a text are"),
        *(
            (
                kl(data__format=f, **more),
                f"format is {f!r}, whose rows lack {lacks}",
            )
            for f, lacks, more in (
                ("tevatron", "scores. Set config.prepare.scores to 'teacher'", {}),
                ("tevatron_ids", "scores", {"data__corpus": "c"}),
                ("beir", "scores", {}),
                ("labelled", "negatives. Set config.prepare.negatives to 'bm25'", {}),
                ("triplet", "a second positive", {"data__positives": 2}),
            )
        ),
        (
            kl(data__format=entry("triplet", negatives="none")),
            "format is 'triplet', whose rows lack negatives",
        ),
        (
            sets(
                infonce(data__negatives="margin_bins", data__group_size=3),
                a=in_files(format="tevatron"),
            ),
            "config.data.sets.a.format is 'tevatron', whose rows lack scores",
        ),
        (
            kl(data__format="alignment"),
            "the loss kl reads queries with documents: milco",
        ),
        (alignment(data__format="beir"), "reads pairs of translations: alignment."),
        (
            infonce(model__head="m3", loss={"m3": {}}, batch_size=1),
            "config.loss.m3 compares the documents of a batch",
        ),
        (
            infonce(batch_size=1),
            "config.loss.infonce compares the documents of a batch",
        ),
        (
            kl(
                data__corpus={"en": "d.tsv", "de": "e.tsv"},
                data__document_languages={"ja": 1, "*": 1},
            ),
            "document_languages names ja, but the texts are in de, en",
        ),
        (
            kl(
                data__corpus="d.tsv",
                data__format=entry("colbert", queries={"en": "q.tsv"}),
                data__query_languages={"de": 1},
            ),
            "query_languages names de, but the texts are in en",
        ),
        (
            infonce(data__batches_from="language", data__topics=5),
            "topics is 5, but data.batches_from = 'language'",
        ),
        (
            infonce(data__group_size=9, prepare__negatives="bm25"),
            "config.prepare.count is 7: fewer negatives than the 8",
        ),
    ],
)
def test_mistakes_say_what_to_do(c, message):
    assert message in refusal(c)


def test_fields_of_data_sets():
    with pytest.raises(
        InputError, match=r"data_set\(\)\.sourse is not a field.*source"
    ):
        data_set(sourse="files")
    own = in_files(format=entry("milco", pos="good"))
    assert own.format.pos == "good" and own.source.files == "x"
    c = sets(kl(), a=in_files())
    with c.data.sets.a.unlocked():
        c.data.sets.a.flies = "y"
    assert "config.data.sets.a.flies is not a field; the nearest is" in refusal(c)
    c = sets(kl(), a=in_files())
    with c.data.sets.a.unlocked():
        del c.data.sets.a["corpus"]
    assert "config.data.sets.a.corpus is missing" in refusal(c)


def test_each_set_has_a_format_of_its_own():
    def one(**fields):
        c = kl(prepare__scores="teacher", teacher__model="x")
        return sets(c, one=in_files("x.jsonl", **fields))

    validate(one(format="tevatron_ids", corpus="c.tsv"))
    message = refusal(one(format="tevatron_ids"))
    assert "config.data.sets.one.corpus is ''" in message
    message = refusal(one(format="nonsense"))
    assert "config.data.sets.one.format is 'nonsense'; known: 'auto'" in message
    message = refusal(one(format="milco", corpus="c.tsv"))
    assert "config.data.sets.one.corpus" in message and "no effect" in message


def test_formats_and_their_fields_are_accepted():
    languages = {"en": "a.tsv", "de": "b.tsv"}
    fields = {"data__format": entry("colbert", queries="q"), "data__corpus": "c"}
    for c in (
        kl(**fields),
        kl(**fields | {"data__corpus": languages}, data__mixing="entries"),
        kl(
            data__format=entry("beir", split="dev"),
            prepare__scores="teacher",
            teacher__model="x",
            dev__source=entry("files", files="x"),
        ),
        kl(
            dev__source=entry("files", files="x"),
            dev__format=entry("beir", split="test"),
        ),
        kl(
            loss={"infonce": {}},
            data__format=entry("labelled", min_label=2.0),
            data__group_size=1,
        ),
        kl(data__format=entry("milco", score_normalization="zscore")),
        alignment(data__source=entry("tfds", dataset="a/b")),
        kl(data__source=entry("datasets", dataset={"a/b": ["c", "d"], "e/f": ""})),
        kl(data__format=teachers(1, 2)),
    ):
        validate(c)


@pytest.mark.parametrize("name", ["", "a/b", "/tmp/a", " a", "damaged", "lock"])
def test_a_stage_has_the_name_of_a_folder(name):
    assert f"config.stages has {name!r}" in refusal(run_of(**{name: kl()}))


def test_fields_of_a_run_belong_to_its_stages():
    c = run_of(one=kl())
    assert list(stages(c)) == ["one"] and list(stages(kl())) == ["train"]
    assert "config.optim.lr = 1.0" in refusal(changed(c, {"optim.lr": 1.0}))
    losses = {"infonce": {"temperature": 2.0}, "kl": {}}
    c = changed(run_of(one=kl()), {"loss": losses})
    assert f"config.loss = {losses!r} would have no effect" in refusal(c)
    within = kl(evaluate__test="debian")
    assert "config.stages.one.evaluate.test" in refusal(run_of(one=within))
    assert "cannot have stages" in refusal(run_of(one=run_of(two=kl())))


def test_a_config_is_a_file_or_a_name_with_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("mine/my.py") == (pathlib.Path("mine/my.py"), [])
    path, variant = located("pretrain:mlm")
    assert path.is_file() and path.name == "pretrain.py" and variant == ["mlm"]
    assert [*load(path, variant).loss] == ["mlm"]
    assert located("my.py:small") == (pathlib.Path("my.py"), ["small"])
    (tmp_path / "my.py:small").write_text("")
    assert located("my.py:small") == (pathlib.Path("my.py:small"), [])


def test_the_seed_of_a_run_is_added_to_those_of_its_stages():
    c = run_of(one=kl(), two=kl(seed=42))
    c.seed = 3
    validate(c)
    assert [stage.seed for stage in stages(c).values()] == [3, 45]
    assert [c.stages.one.seed, c.stages.two.seed] == [0, 42]
    assert stages(kl(seed=3))["train"].seed == 3


def test_references_go_to_earlier_stages():
    first, second = alignment(), kl(init__head="", init__encoder="")
    second.init.model = "stage:first"
    validate(run_of(first=first, second=second))
    message = refusal(run_of(second=second, first=first))
    assert "config.stages.second.init.model is 'stage:first'" in message
    assert "before this one are: none" in message
    second.init.model = "stage:frist"
    assert "are: first." in refusal(run_of(first=first, second=second))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"en": "x"}, "it must be a dict (text: a number)"),
        ({1: 1.0}, "it must be a dict (text: a number)"),
        ({"en": -1.0, "de": 2.0}, "weights are >= 0"),
        ({"en": 0.0}, "one is > 0"),
        ({}, "one is > 0"),
        ({"en": float("nan")}, "weights are >= 0"),
        ({"en": float("inf")}, "weights are >= 0"),
        ("en=1", "it must be a dict (text: a number)"),
    ],
)
def test_language_weights(weights, message):
    said = refusal(infonce(data__document_languages=weights))
    assert f"config.data.document_languages is {weights!r}" in said and message in said


BROKEN = (
    "from lsrjax.config import get_default\n\ndef get_config():\n    return 1 / 0\n"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config={demo}", "--config.stages.align.optim.lrr=1"], "optim.lr."),
        (["--config", "{demo}", "--config.seed=abc"], "'abc'"),
        (["--config=nowhere.py"], "No config file nowhere.py"),
        (["--config={broken}"], "broken.py"),
    ],
    ids=["field", "type", "file", "python"],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, message):
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    demo = next(path for path in CONFIGS if path.name == "demo.py")
    arguments = [a.format(demo=demo, broken=broken) for a in arguments]
    command = [sys.executable, "-m", "lsrjax.main", *arguments]
    result = subprocess.run(
        [*command, f"--workdir={tmp_path}/run"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()
    if message == "broken.py":
        assert 'broken.py", line 4, in get_config\n    return 1 / 0' in result.stderr
        assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    else:
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.batchsize = 3", "config.batchsize is not a field; the nearest is"
         " config.batch_size. docs/config.md lists them all."),
        ("c.optim.lrr *= 2", "config.optim.lrr is not a field; the nearest is"
         " config.optim.lr. docs/config.md lists them all."),
        ("c.optimm.lr = 3", "config.optimm is not a field; the nearest is"
         " config.optim.lr. docs/config.md lists them all."),
        ("c.copy_and_resolve_references().dev['evry'] = 3", "config.dev.evry is not a"
         " field; the nearest is config.dev.every. docs/config.md lists them all."),
        ("c.data.sets = {'a': data_set()}; c.data.sets.a.sourc = 'x'",
         "config.data.sets.NAME.sourc is not a field; the nearest is"
         " config.data.sets.NAME.source. docs/config.md lists them all."),
        ("c.stages.warm.seed = 3", "there is no 'warm' in a group of none. Stages and"
         ' data sets are set together, as in c.stages = {"NAME": …, …}.'),
        ("c.optim = 3", "optim is 3; it is a group of fields: set one of them, such as"
         " optim.optimizer, or give a dict."),
    ],
)  # fmt: skip
def test_a_field_that_a_file_mistakes_is_said_in_a_line(tmp_path, line, said):
    path = tmp_path / "mine.py"
    path.write_text(
        "from lsrjax.config.fields import data_set, get_default\n\n"
        f"def get_config():\n    c = get_default()\n    {line}\n    return c\n"
    )
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value) == f"{path}, line 5, in get_config: {said}"


def test_values_of_another_type_are_named_with_all_else_that_is_wrong():
    c = kl()
    c.optim.lr, c.log.health, c.batch_size = "fast", 3, -1
    c.optim.clip_norm = 1  # a number where another is asked for is none of them
    for said in (
        "3 errors:",
        "config.optim.lr is 'fast'; it must be a number, such as 2e-05.",
        "config.log.health is 3; it must be True or False, such as False.",
        "config.batch_size is -1; it must be > 0.",
    ):
        assert said in refusal(c)
    assert isinstance(c.optim.clip_norm, float)


@pytest.mark.parametrize(
    "name", ["align", "distill", "negatives", "pretrain", "scandinavian", "techniques"]
)
def test_the_variants_of_a_recipe_are_listed(name):
    path, arguments = located(f"{name}:scrpt")
    with pytest.raises(InputError, match="there is no variant 'scrpt'; the variants"):
        load(path, arguments)


def test_variants_where_there_are_none_and_keys_of_ones_own(tmp_path):
    with pytest.raises(InputError, match="demo.py has no variants, such as 'small'"):
        load(*located("demo:small"))
    own = tmp_path / "own.py"
    own.write_text("def get_config(size):\n    return {'a': 1}[size]\n")
    with pytest.raises(InputError, match="own.py:VARIANT"):
        load(own)
    with pytest.raises(
        InputError, match="line 2, in get_config\n.*\n.*\nKeyError: 'b'"
    ):
        load(own, ["b"])


def test_a_token_is_refused_and_not_repeated():
    token = "hf_" + "aB3" * 11
    c = run_of(one=changed(get_default(), {"data.source.files": token}))
    message = refusal(c)
    assert (
        "config.stages.one.data.source.files holds a token of the Hugging Face"
        in message
    )
    assert token not in message


def test_a_copy_shares_nothing():
    c = get_default()
    c.init = {"head": {"model": "one"}}
    c.data.query_languages = {"en": 1}
    other = c.copy_and_resolve_references()
    other.init["head"]["model"] = "another"
    other.loss["infonce"] = {}
    other.data.query_languages["da"] = 2
    other.model.head.pooling = "sum"
    assert c.init["head"] == {"model": "one"} and "infonce" not in c.loss
    assert c.data.query_languages == {"en": 1} and "pooling" not in c.model.head
    assert type(other.init) is type(c.init) and other.is_locked == c.is_locked
