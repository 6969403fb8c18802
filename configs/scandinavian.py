"""Norwegian, Danish and Swedish on NorBERT4: `splade`, `inference_free` or `csr`.

    lsrjax train --config scandinavian[:FORM]

Batches are from one data set of the hub in turn. NLI's rows have hard negatives, and
those of DDSC (which needs a login) that have one are a set of their own. The mean
nDCG@10 of NanoBEIR (dev.task.dataset_id names translations) picks the checkpoint used.
Terms are the next token's, uncapped, so that weights can be 0. On the embedded data:

    --config.init.encoder='' --config.tokenizer=embedded:multilingual
    --config.model.dtype=float32 --config.log.trackers='{}' --config.dev.source=debian
    --config.data.sets.nli.source=debian --config.data.sets.nli.group_size=0
    --config.data.sets.qa.source=debian --config.data.sets.qa.format=auto
    --config.data.sets.ddsc.source=debian --config.data.sets.ddsc.format=auto
    --config.data.sets.hard.source=debian --config.data.sets.hard.format=auto
    --config.data.sets.hard.group_size=0 --config.batch_size=64 --config.optim.lr=1e-3
    --config.data.query_length=24 --config.data.document_length=64 --config.dev.task=''
    --config.steps=200 --config.epochs=0 --config.dev.every=0 --config.dev.over=queries

and, of all forms but csr:

    --config.init.lexical=True --config.model.head.logits=plain
    --config.regularizer.schedule.steps=100
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import data_set, get_default, variant
from lsrjax.config.nodes import entry


def get_config(form: str = "splade") -> ConfigDict:
    encoded = {"splade": "encoded", "inference_free": "static", "csr": ""}
    queries, c = variant(encoded, form), get_default()
    c.init.encoder, c.model.dtype = "ltg/norbert4-base", "bfloat16"
    qa = {"alexandrainst/scandi-qa": ["no", "da", "sv"]}
    hub = {"nli": "Fremtind/all-nli-norwegian", "qa": qa}
    hub["ddsc"] = hub["hard"] = "DDSC/nordic-embedding-training-data"
    sets = {k: data_set(source=entry("datasets", dataset=v)) for k, v in hub.items()}
    sets["nli"].group_size = sets["hard"].group_size = 2
    sets["qa"].format = entry("milco", query="question", pos="context")
    for name, which in (("ddsc", "none"), ("hard", "some")):
        sets[name].format = entry("triplet", negatives=which)
    c.data.sets, c.data.batches_from, c.log.trackers = sets, "one", "mlflow"
    c.data.mixer = entry("weights", weights={"ddsc": 0.6, "hard": 0.4})
    c.data.query_length = c.data.document_length = 256
    if form == "csr":
        c.model.head = entry("csr", pooling="mean")
        c.loss = {"reconstruction": {}, "infonce": {"temperature": 0.05}}
    else:
        c.model.head = entry("splade", logits="shifted", queries=queries)
        c.loss, c.regularizer = {"infonce": {}}, entry("flops", document=3e-3)
        c.regularizer.schedule = entry("quadratic", steps=33_000)
        c.regularizer.query = 5e-4 if form == "splade" else 0.0
    if form == "inference_free":
        c.init.idf_queries, c.optim.groups = True, {"^head/static$": {"lr": 1e-3}}
    c.batch_size, c.epochs, c.optim.lr, c.checkpoint.use = 16, 1.0, 2e-5, "best"
    c.dev.task, c.dev.over, c.dev.every = "nanobeir", "mean", 1_000
    return c
