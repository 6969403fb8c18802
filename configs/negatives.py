"""Negatives that the model in training finds: four published recipes, on MS MARCO.

    lsrjax train --config negatives:ance

- `splade`: SPLADE++ with self-distillation (Formal et al. 2022). A SPLADE distilled
  from a cross-encoder over BM25's negatives finds those of a second one, which starts
  as the first did.
- `ance`: a dense model after BM25's negatives finds its own, and again every 10,000
  steps (Xiong et al. 2021; here with the negatives of the batch, too).
- `adore`: STAR's dense model stays as the documents', which are encoded once, and the
  queries' learns from what it finds there every 500 steps (Zhan et al. 2021, who search
  for each batch, and weigh pairs by LambdaLoss).
- `ar2`: retriever and ranker in turn (Zhang et al. 2022). The ranker learns to tell the
  positive from what the retriever finds, the retriever from the ranker's scores of it.
  The paper's ranker is a cross-encoder; cross-encoders are not trained here, so it is a
  ColBERT, and each turn is a stage.

`data/msmarco` is BEIR's folder of MS MARCO; models come from the Hugging Face hub. On
the embedded texts, in minutes on a CPU, each with `_small` after its name:

    lsrjax train --config negatives:ance_small
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default, variant
from lsrjax.config.nodes import entry


def get_config(name: str = "ance") -> ConfigDict:
    made = {"splade": splade, "ance": ance, "adore": adore, "ar2": ar2}
    sizes = {f"{recipe}{size}": recipe for size in ("", "_small") for recipe in made}
    recipe = variant(sizes, name)
    c = get_default()
    c.stages = made[recipe]()
    if name != recipe:
        if recipe == "splade":  # no cross-encoder is embedded
            c.stages = {"teacher": teacher(), **c.stages}
        for one in c.stages.values():
            small(one)
    return c


def stage(encoder: str) -> ConfigDict:
    """A stage on MS MARCO, with one negative of BM25's for each query."""
    c = get_default()
    c.model.dtype = "bfloat16"
    c.init.encoder = encoder
    c.data.source.files, c.data.format = "data/msmarco", "beir"
    c.data.query_length, c.data.document_length = 32, 256
    c.data.group_size = 2
    c.prepare.negatives, c.prepare.depth = "bm25", 200
    c.loss = {"infonce": {}}
    c.memory.encode_chunk = 64
    c.optim.schedule = "linear"
    return c


def splade() -> dict[str, ConfigDict]:
    """Values of the authors' `config_splade++_selfdistil`."""
    first = stage("distilbert/distilbert-base-uncased")
    first.model.head = "splade"
    first.prepare.scores = "teacher"
    first.teacher.model = "cross-encoder/ms-marco-MiniLM-L6-v2"
    first.loss = {"margin_mse": {}}
    first.regularizer = entry("flops", query=0.5, document=0.4)
    first.regularizer.schedule = entry("quadratic", steps=50_000)
    first.batch_size, first.steps = 128, 150_000
    first.optim.lr, first.optim.warmup_steps = 2e-5, 6_000
    again = first.copy_and_resolve_references()
    again.prepare.negatives = "stage:first"
    return {"first": first, "again": again}


def dense(encoder: str = "FacebookAI/roberta-base") -> ConfigDict:
    """The first token's state, not normalized; scores are dot products."""
    c = stage(encoder)
    c.model.head = entry("dense", normalize=False)
    c.batch_size, c.steps = 64, 60_000
    c.optim.lr, c.optim.warmup_fraction = 1e-5, 0.1
    return c


def after(earlier: str, c: ConfigDict) -> ConfigDict:
    """A stage that goes on from an earlier one, with the negatives that it finds."""
    c.init = {"model": f"stage:{earlier}"}
    c.prepare.negatives = f"stage:{earlier}"
    return c


def ance() -> dict[str, ConfigDict]:
    """BM25's negatives, then the model's own."""
    found = after("warm", dense())
    found.prepare.every, found.optim.lr = 10_000, 5e-6
    return {"warm": dense(), "ance": found}


def adore() -> dict[str, ConfigDict]:
    """BM25's negatives; STAR, those of that model; the queries' model alone."""
    queries = after("star", dense())
    queries.model.towers = "separate"
    queries.optim.freeze = "^(?!query_tower)"
    queries.prepare.every, queries.optim.lr = 500, 5e-6
    return {"warm": dense(), "star": after("warm", dense()), "adore": queries}


def ar2(turns: int = 2) -> dict[str, ConfigDict]:
    """A retriever, and in each turn a ranker and the next retriever."""
    stages = {"retriever0": dense()}
    for turn in range(1, turns + 1):
        earlier = f"retriever{turn - 1}"
        ranker = dense()
        ranker.model.head = entry("colbert", embedding_size=128)
        if turn > 1:
            ranker.init = {"model": f"stage:ranker{turn - 1}"}
        ranker.prepare.negatives = f"stage:{earlier}"
        retriever = after(earlier, dense())
        retriever.prepare.scores = "teacher"
        retriever.teacher.model = f"stage:ranker{turn}"
        retriever.loss = {"kl": {}, "infonce": {}}
        for one in (ranker, retriever):
            one.data.group_size, one.prepare.count, one.steps = 16, 15, 10_000
            one.batch_size = 32
        stages |= {f"ranker{turn}": ranker, f"retriever{turn}": retriever}
    return stages


def teacher() -> ConfigDict:
    """A SPLADE in a cross-encoder's place, for the embedded texts."""
    c = splade()["first"]
    c.teacher.model, c.loss = "", {"infonce": {}}
    c.prepare = get_default().prepare
    c.data.group_size = 1
    return c


def small(c: ConfigDict) -> None:
    """The stage on the embedded English texts, from random weights."""
    if c.init.get("encoder"):
        c.init = {"lexical": {}} if c.model.head.name == "splade" else {}
        c.model.family, c.tokenizer = "bert", "embedded:english"
    c.model.dtype = "float32"
    c.data.source, c.data.format = "debian", "auto"
    c.data.query_languages = c.data.document_languages = {"en": 1}
    c.data.query_length, c.data.document_length = 24, 64
    c.data.group_size = min(c.data.group_size, 4)
    if c.teacher.model.startswith("cross-encoder/"):
        c.teacher.model = "stage:teacher"
    if c.prepare.negatives != "given":
        c.prepare.count, c.prepare.depth = 3, 50
    c.prepare.every = min(c.prepare.every, 40)
    if c.model.head.name == "splade":
        c.regularizer.query = c.regularizer.document = 1e-3
        c.regularizer.schedule.steps = 40
    c.memory.encode_chunk = 0
    c.batch_size, c.steps = 32, 80
    c.optim.lr = 3e-4 if "model" in c.init else 1e-3
    c.optim.warmup_steps, c.optim.warmup_fraction = 0, 0.1
    c.dev.source = "debian"
