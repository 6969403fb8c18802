"""Techniques compared on the embedded texts: objectives, negatives and others.

    lsrjax train --config techniques:objectives

The demo's teacher and the first stage of its student (`align`) are trained. From there
each further stage goes on as the demo's last does, but for what its name says, and for
about as many CPU minutes as the others. The tables compare all of them on dev.

- `objectives`: losses over the batch, and over seven negatives of BM25's (`kl`, …).
- `graded`: losses over lists and pairs with grades, which the teacher's scores are.
- `negatives`: those of InfoNCE beside the batch's.
- `batches`: which texts are in a batch.
- `pretraining`: what the encoder starts from: the teacher's layers with the words of
  the tokens' translations (`words`, as the demo), nothing, or plain texts.
- `alignment`: the first stage's raw logits below zero: as they are, or 0 as in the
  reference (of every text, or of those that are padded).
- `optimizers`: of InfoNCE's stage, and low-rank adapters of the encoder's layers.
"""

from ml_collections import ConfigDict

from lsrjax.config import fields
from lsrjax.config.nodes import entry

INFONCE = {"temperature": 0.6}
# Not tuned.
TAUGHT = {"temperature": 0.6, "teacher_scale": 2.0}


def get_config(variant: str = "objectives") -> ConfigDict:
    c = fields.load(fields.recipes()["demo"])
    with c.unlocked():
        last = c.stages.contrast
        del c.stages["contrast"]
    last.steps, last.dev.every, last.optim.warmup_steps = 150, 150, 15
    variants = {
        "objectives": objectives,
        "graded": graded,
        "negatives": negatives,
        "batches": batches,
        "pretraining": pretraining,
        "alignment": alignment,
        "optimizers": optimizers,
    }
    chosen = fields.variant(variants, variant)
    c.stages = dict(c.stages.items()) | chosen(last, c.stages.align)
    c.evaluate.split = "dev"
    c.evaluate.examples = ()
    return c


def copy(c: ConfigDict, **fields_of_data) -> ConfigDict:
    """A copy; with another `group_size`, of as many CPU minutes."""
    c = c.copy_and_resolve_references()
    for name, value in fields_of_data.items():
        c.data[name] = value
    if c.data.group_size > 1:
        c.batch_size = 32 if c.data.group_size > 4 else 64
        c.prepare.count = c.data.group_size - 1
        c.prepare.negatives, c.prepare.depth = "bm25", 300
        c.steps = 100
    return c


def objectives(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """Of InfoNCE's stage the loss is another."""
    batch = {
        "infonce": {"infonce": INFONCE},
        "mann_whitney": {"mann_whitney": INFONCE},
        "passage_centric": {
            "infonce": {"weight": 0.9, **INFONCE},
            "passage_centric": {"weight": 0.1, **INFONCE},
        },
        "batch_kl": {"batch_kl": TAUGHT},
        "infonce_batch_kl": {
            "infonce": {"weight": 0.7, **INFONCE},
            "batch_kl": {"weight": 0.3, **TAUGHT},
        },
        "batch_margin_mse": {"batch_margin_mse": {"teacher_scale": 2.0}},
    }
    lists = {
        "kl": {"kl": TAUGHT},
        "margin_mse": {"margin_mse": {"teacher_scale": 2.0}},
        "kl_infonce": {"kl": TAUGHT, "infonce": INFONCE},
    }
    stages = {}
    for name, loss in (batch | lists).items():
        stages[name] = c = copy(last, group_size=8 if name in lists else 1)
        c.loss = loss
        if name in lists:
            c.prepare.scores = "teacher"
        if name in lists or "batch_" in name:
            c.teacher.model = "stage:teacher"
    return stages


def graded(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """Of seven negatives of BM25's, but `embedding`, whose grades are vectors.

    ListNet's gradient over a query's own documents is that of `kl`.
    """
    scales = {"temperature": 0.6, "grade_temperature": 0.3}
    losses = {
        "listnet_in_batch": {"listnet": {"in_batch": True, **scales}},
        "wasserstein": {"wasserstein": scales},
        "cosent": {"cosent": {"temperature": 0.05}},
    }
    stages = {}
    for name, loss in losses.items():
        stages[name] = c = copy(last, group_size=8)
        c.loss = loss
        c.prepare.scores, c.teacher.model = "teacher", "stage:teacher"
    stages["embedding"] = c = copy(last)
    c.loss = {"infonce": INFONCE, "embedding": {"weight": 0.01}}
    c.teacher.model = "stage:teacher"
    return stages


def negatives(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """Three negatives of each query beside the batch: BM25's, or found by a model."""
    found = {name: copy(last, group_size=4) for name in ("bm25", "student", "ance")}
    found["student"].prepare.negatives = "stage:batch"
    found["ance"].prepare.negatives = "stage:align"
    found["ance"].prepare.every = 35
    return {"batch": copy(last), **found}


def batches(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """The demo's shares, as many as there are, one a batch, or the worst first."""
    dro = copy(last)
    dro.dro.groups = "languages"
    return {
        "shares": copy(last),
        "as_they_are": copy(last, language_temperature=1.0, query_languages={"*": 1}),
        "one_language": copy(last, batches_from="language"),
        "group_dro": dro,
    }


def pretraining(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """An alignment and a last stage after each start of the encoder."""
    losses = {
        "mlm": {"mlm": {}},
        "bag_of_words": {"mlm": {"rate": 0.3}, "bag_of_words": {}},
        "crops": {"infonce": {}},
    }
    stages = {"words": copy(last)}
    for name in ("nothing", *losses):
        start = {"head": {"model": "stage:teacher"}, "translations": {"scale": 2.5}}
        if name in losses:
            stages[f"{name}_before"] = texts = copy(align)
            texts.model.head, texts.model.family = "splade", "xlm-roberta"
            texts.init, texts.optim.freeze, texts.teacher.model = {}, "", ""
            pairs = entry("crops" if name == "crops" else "title")
            texts.data.source = entry("texts", files="embedded", pairs=pairs)
            texts.loss, texts.optim.lr, texts.steps = losses[name], 1e-3, 100
            start["encoder"] = f"stage:{name}_before"
        stages[f"{name}_align"] = copy(align)
        stages[f"{name}_align"].init = start
        stages[name] = copy(last)
        stages[name].init.model = f"stage:{name}_align"
    return stages


def alignment(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """A last stage after each alignment."""
    stages = {"kept": copy(last)}
    for name in ("zero", "padded"):
        stages[f"{name}_align"], stages[name] = first, after = copy(align), copy(last)
        if name == "zero":
            first.loss = {"alignment": {"below_zero": "zero"}}
        else:
            first.model.head.pool_mask = after.model.head.pool_mask = "multiply"
        after.init.model = f"stage:{name}_align"
    return stages


def optimizers(last: ConfigDict, align: ConfigDict) -> dict[str, ConfigDict]:
    """AdamW's rates times a factor, as the optimizers' papers have it; not tuned."""
    factors = {"adamw": 1.0, "lion": 0.2, "adafactor": 1.0, "muon": 1.0, "lamb": 10.0}
    tables = next(iter(last.optim.groups))
    stages = {}
    for name, factor in factors.items():
        stages[name] = c = copy(last)
        c.optim.optimizer = name
        c.optim.lr *= factor
        c.optim.groups[tables]["lr"] *= factor
    stages["lora"] = c = copy(last)
    c.adapt = {"lora": {"rank": 16, "also": tables}}
    c.optim.lr *= 10
    return stages
