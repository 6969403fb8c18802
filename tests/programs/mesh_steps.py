"""Three steps of each task on each mesh, in a process with eight devices.

python mesh_steps.py OUT.npz CASE… with CASE = task:data:model:fsdp:chunk:remat
"""

import os
import sys

from launch import QUICK

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from lsrjax.config.fields import data_set, get_default
from lsrjax.data.batching import length_shapes
from lsrjax.distributed import sharding
from lsrjax.distributed.trees import path_name
from lsrjax.losses import objective, table
from lsrjax.losses.regularizers import REGULARIZERS
from lsrjax.models import adapters
from lsrjax.models.adapters import ADAPTERS
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.heads import HEADS
from lsrjax.models.lookups import CLASS
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.ops.vocab_logsumexp import SILENT
from lsrjax.options import names
from lsrjax.training import train_step
from lsrjax.training.batch_contents import Contents

EXAMPLES, GROUP, LENGTH, STEPS = 8, 3, 11, 3
WORDS, TERMS = 48, 37  # the terms divide by no mesh


def encoder(family: str, vocab: int) -> EncoderConfig:
    return tiny.encoder(
        family,
        vocab_size=vocab,
        hidden_size=16,
        num_layers=2,
        num_heads=4,  # not whole on eight devices
        intermediate_size=24,
        max_positions=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=0,
        hidden_dropout=0.1,
        attention_dropout=0.1,
    )


TEACHER = RetrieverSpec.of("splade", encoder("bert", TERMS), tied=True)
STUDENT = RetrieverSpec.of(
    "milco",
    encoder("xlm-roberta", WORDS),
    pivot_vocab_size=TERMS,
    pivot_hidden_size=16,
    lexecho=True,
)


CSR = {
    "head": "csr",
    "pooling": "mean",
    "latents": 24,
    "active_latents": 3,
    "revived_latents": 4,
    "dead_after": 1,
}
# All but those of other tasks' students.
FAMILIES = [name for name in BACKBONES if name not in ("bert", "xlm-roberta")]
TIED = ("modernbert",)  # the rest with a decoder of their own
# Tasks of other students: their losses, the regularizer and what the student is.
OTHERS = {
    "static": (
        "infonce",
        "idf_flops",
        {"head": "splade", "tied": True, "queries": "static"},
    ),
    "towers": ("kl", "", {"towers": "separate"}),
    "lora": ("infonce", "", {"lexecho": True}),
    "prompt": ("infonce", "", {"head": "splade", "tied": True, "prompt_ids": (4, 5)}),
    "csr_towers": ("infonce", "", CSR | {"towers": "separate"}),
    "sum": ("kl", "joint_flops", {"head": "splade", "pooling": "sum"}),
    "token_weights": ("infonce", "masked_flops", {"head": "token_weights"}),
    "dense": ("kl", "", {"head": "dense", "pooling": "mean", "normalize": False}),
    "prefixes": ("prefixes", "", {"head": "dense"}),
    "aggretriever": (
        "kl",
        "",
        {"head": "aggretriever", "semantic_size": 3, "lexical_size": 5},
    ),
    "hybrid": ("infonce", "idf_flops", {"head": "hybrid", "tied": True}),
    "m3_all": ("m3", "", {"head": "m3", "token_bias": True}),
    "dro": ("infonce", "", {"head": "splade"}),  # over three data sets
    "batch": ("batch_kl", "", {}),  # MILCO with an English teacher
    "lookups": ("kl", "flops", {"translations": 3, "stems": 11, "ngrams": 50}),
    **{
        family: (
            "infonce",
            "",
            {"head": "splade", "tied": family in TIED, "family": family},
        )
        for family in FAMILIES
    },
    "csr_ties": ("csr", "flops", CSR),
    "colbert_all": ("infonce", "", {"head": "colbert", "expand_id": 5}),
    "batch_wide": ("batch_wide", "l1", {"head": "splade", "pooling": "sum"}),
    "angle": ("angle", "", {"head": "dense", "pooling": "mean"}),
    "mlm_static": (
        "mlm",
        "flops",
        {"head": "splade", "tied": False, "queries": "static", "family": "norbert4"},
    ),
    # All queries in one language, then in the other; with the signs of health.
    "round_robin": ("language_kl", "l1", {"head": "splade", "pooling": "sum"}),
}
# Sums, by the name that a task has for them.
LOSSES = {
    "kl": {"kl": {}, "margin_mse": {"weight": 0.01}},
    "language_kl": {"kl": {"weight": 0.1}, "language_kl": {}},
    "csr": {"reconstruction": {}, "infonce": {"weight": 0.1}},
    "batch_kl": {
        "batch_kl": {"teacher_scale": 2.0},
        "batch_margin_mse": {},
        "embedding": {"distance": "cosine"},
    },
    "batch_wide": {
        **{name: {} for name in ("mann_whitney", "passage_centric", "wasserstein")},
        **{"listnet": {"in_batch": True}, "cosent": {"temperature": 0.5}},
    },
    "prefixes": {"infonce": {"prefixes": (5,)}, "kl": {"prefixes": (3, 5)}},
    "mlm": {
        "mlm": {"rate": 0.3},
        "bag_of_words": {"weight": 0.3},
        "infonce": {"weight": 0.5},
    },
}


def check_all_are_here() -> None:
    """Each entry of a table has a task, or the entry is named."""
    tasks = ("alignment", "kl", "infonce", *OTHERS)
    configs = [config_of(task) for task in tasks]
    for name, known, found in (
        ("HEADS", HEADS, {student_of(task).head for task in tasks}),
        (
            "LOSSES",
            table.LOSSES,
            {loss for c in configs for loss in objective.of(c.loss).weights},
        ),
        ("ADAPTERS", ADAPTERS, {one for c in configs for one in c.adapt}),
        (
            "REGULARIZERS",
            REGULARIZERS,
            {c.regularizer.name for c in configs if "document" in c.regularizer},
        ),
    ):
        if missing := set(known) - found:
            raise SystemExit(
                f"{', '.join(sorted(missing))} of {name}: no task in"
                " tests/programs/mesh_steps.py; add one to OTHERS and, in"
                " tests/distributed/test_sharding.py, to OTHERS."
            )


def student_of(task: str) -> RetrieverSpec:
    if task not in OTHERS:
        return STUDENT
    options = dict(OTHERS[task][2])
    family = options.pop("family", "bert")
    if "head" not in options:  # the same student, but for these options
        return STUDENT.replaced(**options)
    return RetrieverSpec.of(encoder=encoder(family, TERMS), special_ids=(1,), **options)


def sparse_in_part(spec: RetrieverSpec) -> bool:
    return bool(spec.sparse or HEADS[spec.head].weighed)


def config_of(task: str):
    c = get_default()
    c.model.dropout = 0.1
    c.optim.lr, c.optim.schedule = 1e-3, "constant"
    # Adam divides by the gradient's size, which for a gradient of about zero is noise.
    c.optim.optimizer.eps = 1e-3
    c.batch_size = EXAMPLES
    if task == "alignment":
        c.loss = {"alignment": {}}
        return c
    if task == "lora":
        paths, also = "kernel|word|decoder", "^head/.*bias"
        c.adapt = {"lora": {"rank": 2, "paths": paths, "also": also}}
    if task == "prompt":
        # The gradients of two rows alone are small.
        c.adapt = {"lora": {"rank": 2}, "prompt": {"queries": 1, "documents": 1}}
    loss, regularizer = OTHERS[task][:2] if task in OTHERS else (task, "")
    c.loss = LOSSES.get(loss, {loss: {}})
    c.regularizer.name = regularizer or ("flops" if loss == "infonce" else "l1")
    if regularizer == "masked_flops":
        c.regularizer.threshold = 2
    c.data.group_size = GROUP
    fields = ("query", "document", "source_query", "source_document")
    for field in fields if sparse_in_part(student_of(task)) else ():
        if field in names(REGULARIZERS[c.regularizer.name].Options):
            c.regularizer[field] = 0.1
    if loss == "language_kl":
        c.loss = {
            "kl": {"weight": 0.1, "temperature": 10.0},
            "language_kl": {"temperature": 10.0},
        }
        c.log.health, c.data.source = True, "debian"
        c.data.mixing, c.data.document_languages = "round_robin", {"en": 1, "da": 1}
    if task == "dro":
        c.data.sets = {name: data_set() for name in "abc"}
        c.dro.groups, c.dro.rate = "sets", 0.2
    if task == "m3_all":
        c.data.positives = 2
    if task == "infonce":
        c.loss = {"infonce": {"both_directions": True}}
        c.regularizer.anti_zero = 0.1
        c.regularizer.active_document, c.regularizer.active_gain = 5.0, 0.5
    return c


def random_params(spec, seed, config=None):
    rng = np.random.default_rng(seed)
    abstract = adapters.shapes(config or get_default(), spec)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract
    )
    head = params.get("head", {})
    if spec.prompt_ids:
        word = params["encoder"]["embeddings"]["word"]
        word["prompt_start"] = np.float32(spec.prompt_ids[0])
        head["mlm"]["bias"][list(spec.prompt_ids)] = SILENT
    if "dictionary" in head:
        for part, name in (
            ("dictionary", "terms"),
            ("stems", "terms"),
            ("stems", "characters"),
            ("ngrams", "characters"),
        ):
            drawn = rng.integers(0, TERMS, head[part][name].shape).astype(np.float32)
            head[part][name] = drawn
        head["stems"]["characters"] += np.float32(CLASS)
    for weigh in ("echo", "weigh"):
        for parent in (head, head.get("terms", {})):
            if weigh in parent:
                # Weights of tokens of about 1. Near 0 they are differences of equal
                # numbers, whose rounding is large beside them.
                parent[weigh]["bias"] = np.ones((), np.float32)
    return params


def with_ties(params):
    """Every latent of an autoencoder twice, so that the k-th largest is two."""
    coder = params["head"]["autoencoder"]
    for name in ("kernel", "bias"):
        coder[name][..., 1::2] = coder[name][..., ::2]
    return params


def idf_of(spec):
    rng = np.random.default_rng(4)
    return {
        view: rng.uniform(0.5, 4, size).astype(np.float32)
        for view, size in spec.views.items()
    }


def rows_of(task: str, step: int, devices: int) -> dict[str, list[dict]]:
    """Token ids of the texts of each cut of the step, by device and by name."""
    rng = np.random.default_rng((step, len(task)))

    def texts(count, vocab):
        return [
            [
                rng.integers(1, vocab, rng.integers(2, LENGTH + 1)).tolist()
                for _ in range(count)
            ]
            for _ in range(EXAMPLES)
        ]

    words = student_of(task).encoder.vocab_size
    first, second = Contents.of(config_of(task)).texts
    models = {"student": {first: texts(1, words), second: texts(1, words)}}
    if task == "alignment":
        models["teacher"] = {"teacher": texts(1, TERMS)}
    else:
        models["student"][second] = texts(GROUP, words)
    if task == "batch":
        models["teacher"] = {first: texts(1, TERMS), second: texts(GROUP, TERMS)}
    if student_of(task).roles_apart:
        models["queries"] = {first: models["student"].pop(first)}
    share = EXAMPLES // devices
    return {
        model: [
            {
                name: sum(by_example[d * share : (d + 1) * share], [])
                for name, by_example in named.items()
            }
            for d in range(devices)
        ]
        for model, named in models.items()
    }


def languages_of(task: str, own: dict, first: dict[str, int]) -> dict | None:
    """Languages of a device's texts, by their numbers in the batch, of one family."""
    if task != "xmod":
        return None
    return {
        name: [(first[name] + i) % 3 for i in range(len(own[name]))] for name in own
    }


def first_of(task: str, device: int, devices: int) -> dict[str, int]:
    """The number in the batch of a device's first text of each name."""
    found, before = {"teacher": 0}, 0
    for name, count in Contents.of(config_of(task)).texts.items():
        found[name] = before + device * EXAMPLES * count // devices
        before += EXAMPLES * count
    return found


def batches_of(task: str, devices: int) -> list[dict]:
    """The steps' batches, cut for so many devices into two parts."""
    steps = [rows_of(task, step, devices) for step in range(STEPS)]
    batches = [{} for _ in steps]
    for model in steps[0]:
        lengths = [
            [len(row) for own in device.values() for row in own]
            for rows in steps
            for device in rows[model]
        ]
        table = length_shapes.fit(np.array(lengths), LENGTH, parts=2, multiple=2)
        shape = table[min(1, len(table) - 1)]  # holds all of them
        for rows, batch in zip(steps, batches, strict=True):
            made = [
                length_shapes.cut(
                    *(own, shape, 0),
                    first=first,
                    languages=languages_of(task, own, first),
                )
                for device, own in enumerate(rows[model])
                for first in [first_of(task, device, devices)]
            ]
            batch[model] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)
    rng = np.random.default_rng(9)
    for batch in batches:
        # As integers, normal numbers of this size are identities that often repeat.
        batch["targets"] = {
            name: rng.normal(0, 2, array.shape).astype(array.dtype)
            for name, array in Contents.of(config_of(task)).targets.items()
        }
    return batches


def run(task, data, model, fsdp, chunk, remat) -> dict[str, np.ndarray]:
    """Metrics of each step and the last parameters, by name."""
    config = config_of(task)
    config.memory.encode_chunk, config.memory.remat = chunk, remat
    mesh = sharding.make_mesh(data, model, jax.devices()[: data * model])
    teacher = TEACHER if Contents.of(config).has_views else None
    student = student_of(task)
    found = {}
    with jax.set_mesh(mesh):
        step = train_step.make_step(config, 10, student, teacher, idf_of(student))

        def placed(spec, params):
            layout = sharding.layout_of(spec, params, mesh, fsdp)
            return sharding.place(params, layout.shardings(params)), layout

        params = random_params(student, 0, config)
        params = with_ties(params) if task == "csr_ties" else params
        params, layout = placed(student, params)
        teacher_params = teacher and placed(TEACHER, random_params(TEACHER, 1))[0]
        state = jax.eval_shape(lambda p: train_step.init_state(step, p), params)
        lies = layout.shardings(state)
        state = jax.jit(lambda p: train_step.init_state(step, p), out_shardings=lies)(
            params
        )
        jitted = jax.jit(step, out_shardings=(lies, None))
        for number, batch in enumerate(batches_of(task, data)):
            batch = sharding.to_global(batch, mesh, range(data))
            state, metrics = jitted(state, teacher_params, batch)
            leaves = jax.tree_util.tree_leaves_with_path(metrics)
            found |= {f"{number}/{path_name(p)}": np.asarray(v) for p, v in leaves}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"]):
        found[f"params/{path_name(path)}"] = np.asarray(jnp.asarray(leaf))
    return found


if __name__ == "__main__":
    check_all_are_here()
    results = {}
    for case in sys.argv[2:]:
        task, data, model, fsdp, chunk, remat = case.split(":")
        values = run(task, int(data), int(model), fsdp == "1", int(chunk), remat)
        results |= {f"{case}|{name}": value for name, value in values.items()}
    np.savez(sys.argv[1], **results)
