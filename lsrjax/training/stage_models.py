"""Opens a stage's models: the student, and its teacher."""

import dataclasses
import pathlib

import jax

from lsrjax.checkpoint import saved_model
from lsrjax.convert import open_model, reranker
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import processes, sharding
from lsrjax.errors import InputError
from lsrjax.initial import build_student, term_statistics
from lsrjax.losses import regularizers
from lsrjax.retrieval.bm25 import TERMS
from lsrjax.retrieval.teacher_scores import Lexical
from lsrjax.training.batch_contents import Contents


def open_student(
    config, workdir: pathlib.Path, folder: pathlib.Path
) -> build_student.Student:
    """The retriever before training; writes its config and tokenizers to `folder`."""
    student = build_student.student(
        config, lambda reference: open_model.open_model(reference, workdir)
    )
    if processes.is_first():
        saved_model.write_model_files(
            folder, student.spec, student.tokenizer, student.pivot_tokenizer
        )
    return student


def idf_of(config, student: build_student.Student, source):
    """Idf [V] of each view's terms, or None if the regularizer does not need it."""
    if not regularizers.of(config.regularizer).entry.idf:
        return None
    return term_statistics.idf_of_views(
        student.spec, student.tokenizer, student.pivot_tokenizer, source
    )


def mask_id_of(contents: Contents, student: build_student.Student) -> int:
    """The student's mask token, if a loss masks its texts; otherwise 0.

    Raises:
      InputError: its tokenizer has none.
    """
    if contents.objective.masking is None:
        return 0
    return TextTokenizer(student.tokenizer).mask_id


def open_teacher(
    contents: Contents, student, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> saved_model.SavedModel | None:
    """The teacher of a stage's config, placed on the mesh; None without a teacher.

    Its views must be such that the `student` spec can imitate them.
    """
    config = contents.config
    if not config.teacher.model:
        return None
    teacher = open_model.open_model(
        config.teacher.model, workdir, cross_encoder=not contents.has_views
    )
    if contents.has_views:
        check_teacher(contents, student, teacher.spec, teacher.name)
    teacher = reranker.asked(teacher, config.teacher, "config.teacher.")
    return placed(config, teacher, mesh)


def open_beside(
    config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> list[saved_model.SavedModel | Lexical]:
    """What scores beside the teacher (`teacher.beside`), in order."""
    return [
        Lexical(TERMS[name])
        if name in TERMS
        else placed(
            config, open_model.open_model(name, workdir, cross_encoder=True), mesh
        )
        for name in config.teacher.beside
    ]


def open_miner(
    config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> saved_model.SavedModel | None:
    """The model that mines a stage's first negatives; None for BM25 or given ones."""
    reference = config.prepare.negatives
    if not reference.startswith("stage:"):
        return None
    return placed(config, open_model.open_model(reference, workdir), mesh)


def placed(config, model: saved_model.SavedModel, mesh) -> saved_model.SavedModel:
    """A model placed on a mesh with the partitioning of a stage's config."""
    layout = sharding.layout_of(model.spec, model.params, mesh, config.mesh.fsdp)
    params = sharding.place(model.params, layout.shardings(model.params))
    return dataclasses.replace(model, params=params)


def check_teacher(contents: Contents, spec, teacher, name: str) -> None:
    """Refuses a teacher's spec whose views the student's spec cannot imitate."""
    if contents.kind == "group":
        # Scores of any views can be compared.
        if "views" in contents.objective.targets:
            _check_vectors(contents, spec, teacher, name)
        return
    if teacher.towers == "separate":
        raise InputError(
            f"config.teacher.model: {name} has separate towers for queries and"
            " documents; the views of a text that is neither need a model with shared"
            " ones."
        )
    size = teacher.encoder.vocab_size
    terms = spec.views.get("pivot", size)
    if size != terms:
        raise InputError(
            f"config.teacher.model: {name} has {size} terms, the student's"
            f" pivot head {terms}; alignment needs the same vocabulary."
        )


def _check_vectors(contents: Contents, spec, teacher, name: str) -> None:
    """Refuses a teacher whose vectors have another size than the student's."""
    sizes = [one.views[one.vector] if one.vector else 0 for one in (spec, teacher)]
    if sizes[0] != sizes[1]:
        own, other = sizes
        has = f"vectors of {other:,} numbers" if other else "no vector of each text"
        raise InputError(
            f"config.teacher.model: {name} ({teacher.head}) has {has}, the student"
            f" ({spec.head}) of {own:,}; the loss {contents.objective.name} compares"
            " them number by number. Use a teacher with vectors of that size, or a loss"
            " that compares scores, such as batch_kl."
        )
