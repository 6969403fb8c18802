"""What a stage is trained with, from its config."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence

import jax

from lsrjax.checkpoint import saved_model
from lsrjax.config.check_stage import check_warmup
from lsrjax.config.fields import language_weights
from lsrjax.convert import open_model
from lsrjax.data import sources
from lsrjax.data.batching import loader, mixing, orders
from lsrjax.data.batching.drawing import QUERIES, STUDENT, GroupBatches, PairBatches
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.examples import ANY
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.distributed import processes, sharding
from lsrjax.errors import InputError
from lsrjax.initial import build_student, term_statistics
from lsrjax.losses import objective, regularizers
from lsrjax.models import retriever
from lsrjax.retrieval.evaluate import Searcher, dev_metric, dev_task
from lsrjax.training import memory_plan, origins, stage_data, train_step


@contextlib.contextmanager
def on_devices(config):
    """Sets the mesh of a stage's config; gives it."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    with jax.set_mesh(mesh):
        yield mesh


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a stage is trained with.

    Attributes:
      kind: of the examples, "pair" or "group".
      source: the training examples.
      formats: of its data sets, and what they were told by.
      order: which of them make up which batch.
      student: the retriever before training.
      teacher: the frozen English model, or None.
      total_steps: optimizer steps.
      step: the training step.
      layout: where the student's parameters lie.
    """

    kind: str
    source: Sequence
    formats: tuple[str, ...]
    order: orders.Order | mixing.MixedOrder
    student: build_student.Student
    teacher: saved_model.SavedModel | None
    total_steps: int
    step: train_step.Step
    layout: sharding.Layout


def assemble(name, config, workdir, folder, mesh, tracker, bad) -> Parts:
    """Opens data and models, and builds the step.

    Args:
      name: the stage's.
      config: the stage's.
      workdir: the run's folder, in which the models of earlier stages are.
      folder: the stage's.
      mesh: the devices.
      tracker: is told what is prepared.
      bad: what replaces and counts bad records.

    Raises:
      InputError: data or a model that cannot be read, or that do not go together.
    """
    views = "views" in objective.of(config.loss).targets
    kind = "pair" if views else "group"
    models = None
    if processes.is_first():
        models = origins.of_stage(config, workdir)
        origins.check(folder / origins.FILE, models)
    sets = stage_data.open_sets(config, kind, folder, bad)
    source = sets[0] if len(sets) == 1 else mixing.Concatenated(sets)
    student = build_student.student(
        config, lambda reference: open_model.open_model(reference, workdir)
    )
    if processes.is_first():
        saved_model.write_model_files(
            folder, student.spec, student.tokenizer, student.pivot_tokenizer
        )
    teacher = None
    if config.teacher.model:
        teacher = open_model.open_model(
            config.teacher.model, workdir, cross_encoder=not views
        )
        teacher = placed(config, teacher, mesh)
    if views:
        check_teacher(student.spec, teacher.spec, teacher.name)
    else:
        source = stage_data.with_negatives(
            config, source, folder, bad, teacher, tracker, models
        )
    topics = stage_data.topics(config, source, folder, student, tracker, models)
    entries = train_step.entries_of(config)
    if topics is not None:
        order = mixing.order_of_topics(topics, entries, config.seed)
    else:
        sizes = [len(one) for one in sets]
        order = mixing.order_of(config.data, sizes, entries, config.seed)
    shown = config.batch_size // entries
    total_steps = train_step.steps_of(config, shown * len(source))
    check_warmup(config, total_steps, f"stage {name}: config")
    idf = None
    if regularizers.of(config.regularizer).entry.idf:
        idf = term_statistics.idf_of_views(
            student.spec, student.tokenizer, student.pivot_tokenizer, source
        )
    step = train_step.make_step(
        build_student.settled(config, student.spec),
        total_steps,
        student.spec,
        teacher.spec if views else None,
        idf,
    )
    layout = _layout(config, student.spec, mesh)
    formats = tuple(one.description for one in sets)
    return Parts(
        kind, source, formats, order, student, teacher, total_steps, step, layout
    )


def plan_of(config, parts: Parts, batches: loader.Batches) -> memory_plan.StagePlan:
    """What the stage will take, to be checked against what there is."""
    teacher = parts.teacher.spec if parts.step.teacher else None
    return memory_plan.StagePlan(
        config, parts.student.spec, teacher, parts.layout.mesh, batches.shapes[-1]
    )


def _layout(config, spec, mesh) -> sharding.Layout:
    _, abstract = retriever.split(spec)
    heads = spec.encoder.num_heads
    return sharding.layout(
        abstract, mesh, num_heads=heads, fsdp=config.mesh.fsdp, rules=spec.rules
    )


def placed(config, model: saved_model.SavedModel, mesh) -> saved_model.SavedModel:
    """A model on the devices of a mesh, as a stage's config divides it."""
    layout = sharding.layout(
        model.params,
        mesh,
        num_heads=model.spec.encoder.num_heads,
        fsdp=config.mesh.fsdp,
        rules=model.spec.rules,
    )
    params = sharding.place(model.params, layout.shardings(model.params))
    return dataclasses.replace(model, params=params)


def check_teacher(spec, teacher, name: str) -> None:
    """Refuses a teacher of views whose views a student cannot imitate.

    Args:
      spec: the student's.
      teacher: the teacher's spec.
      name: the teacher's.

    Raises:
      InputError: says how they differ.
    """
    if teacher.towers == "separate":
        raise InputError(
            f"config.teacher.model: {name} has separate towers for queries and"
            " documents; the views of a text that is neither need a model with shared"
            " ones."
        )
    if spec.head != "milco":
        return
    size = teacher.encoder.vocab_size
    if size != spec.pivot_vocab_size:
        raise InputError(
            f"config.teacher.model: {name} has {size} terms, the student's"
            f" pivot head {spec.pivot_vocab_size}; alignment needs the same vocabulary."
        )


def initial_state(config, parts: Parts, checkpoints, step: int | None) -> dict:
    """The state of a checkpoint, or a fresh one."""

    def init(params):
        return train_step.init_state(parts.step, params)

    _, abstract = retriever.split(parts.student.spec)
    state = jax.eval_shape(init, abstract)
    shardings = parts.layout.shardings(state)
    if step is None:
        with sharding.on_one_device():
            params = parts.student.params(parts.source)
        params = sharding.place(params, shardings["params"])
        return jax.jit(init, out_shardings=shardings)(params)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        state,
        shardings,
    )
    return checkpoints.restore(state, step)


def summary(config, parts: Parts, batches) -> dict[str, object]:
    """What is said of a stage before it is trained."""
    _, abstract = retriever.split(parts.student.spec)
    mesh = parts.layout.mesh
    shapes = " | ".join(
        "; ".join(str(table[name]) for name in (QUERIES, STUDENT) if name in table)
        for table in batches.shapes
    )
    return {
        "examples": len(parts.source),
        "format": "; ".join(dict.fromkeys(parts.formats)),
        "batch": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract)),
        "loss": parts.step.objective.name,
        "views": parts.student.spec.views,
        "mesh": f"data {mesh.shape['data']} x model {mesh.shape['model']}"
        + (" (fsdp)" if config.mesh.fsdp else ""),
        "texts x tokens of a device": shapes,
    }


def batches_of(name: str, config, parts: Parts) -> loader.Batches:
    """The training batches.

    Raises:
      InputError: texts longer than the model takes.
    """
    data, targets = config.data, objective.of(config.loss).targets
    if "views" in targets:
        make = PairBatches(
            _text_field(data, "document_length", parts.student),
            _text_field(data, "document_length", parts.teacher),
        )
    else:
        make = GroupBatches(
            query=_text_field(data, "query_length", parts.student),
            document=_text_field(data, "document_length", parts.student),
            group_size=data.group_size,
            mixing=data.mixing,
            query_languages=language_weights(data.query_languages, "query_languages"),
            document_languages=language_weights(
                data.document_languages, "document_languages"
            ),
            with_scores="scores" in targets,
            with_keys="keys" in targets,
            choice=choice_of(data),
            roles_apart=parts.student.spec.roles_apart,
            languages=train_step.languages_of(config),
        )
    mesh = parts.layout.mesh
    return loader.Batches(
        parts.source,
        parts.order,
        make,
        apart=data.unique_texts,
        devices=mesh.shape[sharding.DATA],
        rows=sharding.local_rows(mesh),
        parts=data.length_parts,
        multiple=data.length_multiple,
        chunk=config.memory.encode_chunk,
        agree=functools.partial(processes.largest, f"shapes of {name}"),
    )


def _text_field(data, length: str, model) -> TextField:
    check_length(data, length, model.spec.encoder.max_length)
    tokenizer, role = TextTokenizer(model.tokenizer), length.removesuffix("_length")
    return TextField.of(model.spec, tokenizer, role, data[length])


def check_length(data, field: str, limit: int) -> None:
    """Refuses texts of more tokens than a model takes.

    Args:
      data: a stage's `data`.
      field: of it, "query_length" or "document_length".
      limit: of the model, in tokens.

    Raises:
      InputError: names the field.
    """
    if data[field] > limit:
        raise InputError(
            f"config.data.{field} is {data[field]}, but the model takes at most"
            f" {limit} tokens. Lower it."
        )


def dev_source(config, kind: str) -> Sequence:
    """The held-out examples that a stage's config names.

    Args:
      config: the stage's.
      kind: of the training examples, "pair" or "group".
    """
    data = config.data.copy_and_resolve_references()
    fields = ("source", "files", "dataset", "split", "format")
    with data.unlocked():
        data.update({field: config.dev[field] for field in fields})
    # The embedded data knows the documents behind its pairs.
    kind = "group" if data.source == "debian" else kind
    try:
        return sources.open_source(data, kind, held_out=True)
    except InputError as error:
        # What is read knows its fields as those of data.
        named = re.sub(
            rf"config\.data\.({'|'.join(fields)})\b", r"config.dev.\1", str(error)
        )
        raise type(error)(named) from error


def dev_examples(config, kind: str) -> int:
    """How many held-out examples a stage's config names; the first one is read.

    Args:
      config: the stage's.
      kind: as in `dev_source`.

    Raises:
      InputError: they cannot be read.
    """
    dev = dev_source(config, kind)
    if getattr(dev, "by_id", False):
        # A query that nothing is relevant to can be evaluated on, not trained on.
        dev.judged(0)
    else:
        dev[0]
    return len(dev)


def dev_of(config, parts: Parts):
    """The function from parameters to dev metrics, or None without dev data."""
    if not config.dev.source:
        return None
    weights = language_weights(config.data.query_languages, "query_languages")
    task = dev_task(
        dev_source(config, parts.kind),
        config.dev.queries,
        # A query of unstated language counts in any case, as it does in training.
        lambda language: (
            language == ANY or weights.get(language, weights.get(ANY, 0.0)) > 0
        ),
    )
    student = parts.student
    idle = Searcher.of(
        saved_model.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        ),
        config,
    )

    def evaluate(params):
        return dev_metric(
            task, dataclasses.replace(idle, params=params), config.dev.metric
        )

    return evaluate
