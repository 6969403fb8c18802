"""A run: its stages one after the other, each going on where it stopped."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import traceback
from collections.abc import Sequence

import jax

from lsrjax import (
    build,
    checkpoint,
    hosts,
    loop,
    losses,
    plan,
    postmortem,
    prepared,
    progress,
    references,
    saved,
    sharding,
    term_statistics,
    trackers,
)
from lsrjax import train as training
from lsrjax.config import language_weights
from lsrjax.data import loader, mixing, orders, sources
from lsrjax.data.drawing import QUERIES, STUDENT
from lsrjax.data.negatives import choice_of
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.models import retriever
from lsrjax.progress import PROGRESS
from lsrjax.regularizers import REGULARIZERS
from lsrjax.retrieval.evaluate import Searcher, dev_metric, dev_task


def run_stage(name: str, config, workdir: pathlib.Path, tracker: trackers.Tracker):
    """Trains a stage, unless it is finished.

    Args:
      name: the stage's.
      config: the stage's.
      workdir: the run's; the stage's folder is `workdir / name`.
      tracker: is told what happens.
    """
    folder = workdir / name
    done = folder / checkpoint.DONE_FILE
    newest = saved.newest_sound_step(name, folder, tracker)
    if (steps := checkpoint.finished_steps(folder)) is not None:
        tracker.note(f"Stage {name} is finished ({steps} steps).")
        return
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    PROGRESS.stage, PROGRESS.step = name, 0
    with (
        on_devices(config) as mesh,
        saved.opened(folder, config, tracker) as checkpoints,
    ):
        training.check_batch(config, mesh.shape[sharding.DATA])
        with PROGRESS.at(progress.PREPARING):
            bad = prepared.bad_records_of(name, folder)
            parts = _assemble(name, config, workdir, folder, mesh, tracker, bad)
            ready = _batches(name, config, parts)
        while not _trained(
            name, config, folder, parts, ready, checkpoints, newest, tracker
        ):
            newest = saved.agreed(f"newest of {name}", checkpoints.latest_step())
    if ready.left_together:
        tracker.note(
            f"  data.unique_texts: {ready.left_together:,} examples stayed in a batch"
            " that has their query or positive text already, for want of others."
        )
    hosts.wait_for_all(f"{name} is trained")
    if replaced := prepared.bad_records_of(name, folder, bad).summary():
        tracker.note(f"  {replaced}")
    tracker.stage_end()
    if hosts.is_first():
        checkpoint.write_json(done, {"steps": parts.total_steps})
        shutil.rmtree(folder / saved.KEPT, ignore_errors=True)
    hosts.wait_for_all(f"{name} is finished")
    PROGRESS.stage = ""


def _start(name, config, folder, parts, checkpoints, newest, tracker):
    """The state to go on from, and whether it is one that was kept."""
    kept_step = None
    if (folder / saved.KEPT).is_dir():
        kept_step = saved.newest_sound_step(
            f"{name}/{saved.KEPT}", folder / saved.KEPT, tracker
        )
    if kept_step is None or kept_step <= (-1 if newest is None else newest):
        return _initial_state(config, parts, checkpoints, newest), False
    with saved.kept(folder, config, tracker) as kept:
        return _initial_state(config, parts, kept, kept_step), True


def _trained(name, config, folder, parts, ready, checkpoints, newest, tracker) -> bool:
    """Trains on from the last state; False: a batch was left out, go back and again."""
    state, owes = _start(name, config, folder, parts, checkpoints, newest, tracker)
    first = int(state["step"])
    tracker.stage(
        name, folder, first, parts.total_steps, _summary(config, parts, ready)
    )
    for note in parts.layout.notes:
        tracker.note(f"  {note}")
    data, mesh = config.data, parts.layout.mesh
    teacher_params = parts.teacher.params if parts.step.teacher else None
    stream = loader.stream(
        ready,
        first,
        parts.total_steps,
        threads=data.threads,
        prefetch=data.prefetch,
        left_out=postmortem.left_out(folder),
    )
    report = postmortem.PostMortem(
        folder, parts.step, parts.source, ready, teacher_params, mesh
    )

    def keep(state):
        with saved.kept(folder, config, tracker) as kept:
            if kept.latest_step() != int(state["step"]):
                kept.save(state, None, last=True)

    def bad(state, error):
        tracker.note(f"  {error} See {report.write(state, error)}")

    def save(state, dev):
        last = int(state["step"]) == parts.total_steps
        checkpoints.save(state, dev, last=last)

    rows = sharding.local_rows(mesh)
    with contextlib.closing(
        sharding.to_global(batch, mesh, rows) for batch in stream
    ) as batches:
        try:
            loop.train(
                config,
                parts.total_steps,
                parts.step,
                state,
                teacher_params,
                batches,
                log=tracker.log,
                save=save,
                evaluate=_dev(config, parts),
                check=_plan(config, parts, ready).check,
                poll=checkpoints.poll,
                keep=keep,
                owes=owes,
                bad=bad,
            )
            return True
        except loop.BadNumbers as error:
            # What the loop holds of the state makes way for an earlier one.
            traceback.clear_frames(error.__traceback__)
            found = error.with_traceback(None)
    del state
    checkpoints.wait()
    try:
        step = saved.agreed(f"newest of {name}", checkpoints.latest_step())
        bad(_initial_state(config, parts, checkpoints, step), found)
    except Exception as error:
        # It must not hide what it is about.
        tracker.note(f"  {found} There is no post-mortem: {error}")
    most = config.numbers.most
    if config.numbers.policy != "roll_back":
        raise found
    if len(postmortem.left_out(folder)) >= most:
        raise TrainingFailed(
            f"{found} {most} batches have been left out already, and config.numbers"
            f".most is {most}."
        )
    without = postmortem.leave_out(folder, found.step)
    tracker.stage_end()
    tracker.note(f"  Goes back to the last checkpoint, without the batches {without}.")
    return False


@contextlib.contextmanager
def on_devices(config):
    """Sets the mesh of a stage's config; gives it."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    with jax.set_mesh(mesh):
        yield mesh


@dataclasses.dataclass(frozen=True)
class _Parts:
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
    student: build.Student
    teacher: checkpoint.SavedModel | None
    total_steps: int
    step: training.Step
    layout: sharding.Layout


def _assemble(name, config, workdir, folder, mesh, tracker, bad) -> _Parts:
    views = "views" in losses.of(config.loss).targets
    kind = "pair" if views else "group"
    sets = prepared.open_sets(config, kind, folder, bad)
    source = sets[0] if len(sets) == 1 else mixing.Concatenated(sets)
    student = build.student(
        config, lambda reference: references.open_model(reference, workdir)
    )
    if hosts.is_first():
        checkpoint.write_model_files(
            folder, student.spec, student.tokenizer, student.pivot_tokenizer
        )
    teacher = None
    if config.teacher.model:
        teacher = references.open_model(
            config.teacher.model, workdir, cross_encoder=not views
        )
        teacher = placed(config, teacher, mesh)
    if views:
        _check_teacher(student.spec, teacher)
    else:
        source = prepared.with_negatives(config, source, folder, teacher, tracker)
    topics = prepared.topics(config, source, folder, student, tracker)
    entries = training.entries_of(config)
    if topics is not None:
        order = mixing.order_of_topics(topics, entries, config.seed)
    else:
        sizes = [len(one) for one in sets]
        order = mixing.order_of(config.data, sizes, entries, config.seed)
    shown = config.batch_size // entries
    total_steps = training.steps_of(config, shown * len(source))
    idf = None
    if REGULARIZERS[config.regularizer.name].idf:
        idf = term_statistics.idf_of_views(
            student.spec, student.tokenizer, student.pivot_tokenizer, source
        )
    step = training.make_step(
        config, total_steps, student.spec, teacher.spec if views else None, idf
    )
    layout = _layout(config, student.spec, mesh)
    formats = tuple(one.description for one in sets)
    return _Parts(
        kind, source, formats, order, student, teacher, total_steps, step, layout
    )


def _plan(config, parts: _Parts, batches: loader.Batches) -> plan.StagePlan:
    teacher = parts.teacher.spec if parts.step.teacher else None
    return plan.StagePlan(
        config, parts.student.spec, teacher, parts.layout.mesh, batches.shapes[-1]
    )


def _layout(config, spec, mesh) -> sharding.Layout:
    _, abstract = retriever.split(spec)
    heads = spec.encoder.num_heads
    return sharding.layout(
        abstract, mesh, num_heads=heads, fsdp=config.mesh.fsdp, rules=spec.rules
    )


def placed(config, model: checkpoint.SavedModel, mesh) -> checkpoint.SavedModel:
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


def _check_teacher(spec, teacher) -> None:
    if teacher.spec.towers == "separate":
        raise InputError(
            f"config.teacher.model: {teacher.name} has separate towers for queries and"
            " documents; the views of a text that is neither need a model with shared"
            " ones."
        )
    if spec.head != "milco":
        return
    size = teacher.spec.encoder.vocab_size
    if size != spec.pivot_vocab_size:
        raise InputError(
            f"config.teacher.model: {teacher.name} has {size} terms, the student's"
            f" pivot head {spec.pivot_vocab_size}; alignment needs the same vocabulary."
        )


def _initial_state(config, parts: _Parts, checkpoints, step: int | None) -> dict:
    """The state of a checkpoint, or a fresh one."""

    def init(params):
        return training.init_state(parts.step, params)

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


def _summary(config, parts: _Parts, batches) -> dict[str, object]:
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
        "loss": config.loss.name,
        "views": parts.student.spec.views,
        "mesh": f"data {mesh.shape['data']} x model {mesh.shape['model']}"
        + (" (fsdp)" if config.mesh.fsdp else ""),
        "texts x tokens of a device": shapes,
    }


def _batches(name: str, config, parts: _Parts) -> loader.Batches:
    """The training batches."""
    data, targets = config.data, losses.of(config.loss).targets
    if "views" in targets:
        make = loader.PairBatches(
            _text_field(data, "document_length", parts.student),
            _text_field(data, "document_length", parts.teacher),
        )
    else:
        make = loader.GroupBatches(
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
            languages=training.languages_of(config),
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
        agree=functools.partial(hosts.largest, f"shapes of {name}"),
    )


def _text_field(data, length: str, model) -> loader.TextField:
    limit = model.spec.encoder.max_length
    if data[length] > limit:
        raise InputError(
            f"config.data.{length} is {data[length]}, but the model takes at most"
            f" {limit} tokens. Lower it."
        )
    tokenizer, role = TextTokenizer(model.tokenizer), length.removesuffix("_length")
    return TextField.of(model.spec, tokenizer, role, data[length])


def dev_source(config, kind: str) -> Sequence:
    """The held-out examples that a stage's config names.

    Args:
      config: the stage's.
      kind: of the training examples, "pair" or "group".
    """
    data = config.data.copy_and_resolve_references()
    with data.unlocked():
        fields = ("source", "files", "dataset", "split", "format")
        data.update({field: config.dev[field] for field in fields})
    # The embedded data knows the documents behind its pairs.
    kind = "group" if data.source == "debian" else kind
    return sources.open_source(data, kind, held_out=True)


def _dev(config, parts: _Parts):
    """Params to dev metrics, or None without dev data."""
    if not config.dev.source:
        return None
    weights = language_weights(config.data.query_languages, "query_languages")
    task = dev_task(
        dev_source(config, parts.kind),
        config.dev.queries,
        # A query of unstated language counts in any case, as it does in training.
        lambda language: (
            language == sources.ANY
            or weights.get(language, weights.get(sources.ANY, 0.0)) > 0
        ),
    )
    student = parts.student
    idle = Searcher.of(
        checkpoint.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        ),
        config,
    )

    def evaluate(params):
        return dev_metric(
            task, dataclasses.replace(idle, params=params), config.dev.metric
        )

    return evaluate
