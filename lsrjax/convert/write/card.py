"""Writes the model card: README.md of an exported folder, from the run's record."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import references
from lsrjax.convert.write import public
from lsrjax.retrieval.metrics import METRICS

# `license` in the authors' own cards on the Hugging Face hub; look other models up
# there.
LICENCES = {
    "naver/splade-v3": "cc-by-nc-sa-4.0",
    "naver/splade-cocondenser-ensembledistil": "cc-by-nc-sa-4.0",
    "google-bert/bert-base-uncased": "apache-2.0",
    "google-bert/bert-base-multilingual-cased": "apache-2.0",
    "FacebookAI/xlm-roberta-base": "mit",
    "FacebookAI/xlm-roberta-large": "mit",
    "BAAI/bge-m3": "mit",
    "BAAI/bge-m3-unsupervised": "mit",
    "intfloat/multilingual-e5-small": "mit",
    "intfloat/multilingual-e5-base": "mit",
    "intfloat/multilingual-e5-large": "mit",
}
_UNKNOWN, _SEE = "unknown", "see the card of"
_EMBEDDED = "Debian package descriptions that ship with lsrjax"
_EMBEDDED_LICENCE = (
    "each text under the licence of its package's Debian packaging, all DFSG-free"
)

_HEADS = {
    "milco": (
        "MILCO, a learned sparse retriever across languages: a text becomes weights of"
        " English terms"
    ),
    "splade": "SPLADE: a text becomes weights of the terms of the vocabulary",
    "token_weights": "a text becomes a weight for each of its own tokens",
    "dense": "a text becomes one embedding",
    "csr": "CSR: a text becomes a sparse code of its embedding",
    "colbert": "ColBERT: a text becomes an embedding of each token, compared by MaxSim",
    "aggretriever": (
        "Aggretriever: a text becomes one embedding, part of it its terms, pooled"
    ),
    "hybrid": "a text becomes an embedding, and weights of the vocabulary's terms",
    "m3": "M3: a text becomes an embedding, weights and embeddings of its tokens",
}
_TAGS = {
    "milco": ("milco", "splade", "sparse-encoder", "sparse"),
    "splade": ("splade", "sparse-encoder", "sparse"),
    "token_weights": ("sparse-encoder", "sparse"),
    "dense": ("sentence-similarity",),
    "csr": ("csr", "sparse-encoder", "sparse"),
    "colbert": ("colbert", "multi-vector"),
    "aggretriever": ("sentence-similarity",),
    "hybrid": ("splade", "sparse"),
    "m3": ("m3", "sparse", "multi-vector"),
}
CARD = "README.md"
# Longer values of a head's options are not shown.
_SHOWN = 10


def write_card(
    folder: pathlib.Path,
    model: SavedModel,
    how_to_load: str,
    *,
    library: str = "transformers",
) -> None:
    """Writes README.md with the front matter that the Hugging Face hub reads.

    Unknown facts about the model are listed as unknown.

    Args:
      how_to_load: the section of that name, in Markdown.
      library: `library_name` of the hub.
    """
    sources = _sources(model)
    parts = [
        _front_matter(model, sources, library),
        f"# {_title(model)}\n\n{_about(model)}",
        f"## How to load\n\n{how_to_load.strip()}",
        f"## What it was made from\n\n{_made_from(sources)}",
        f"## Recipe\n\n{_recipe(model)}",
        f"## Evaluation\n\n{_evaluation(model)}",
        f"## Active terms\n\n{_active_terms(model)}",
        f"## Config\n\n{_config(model)}",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


_NO_EVALUATION = "No evaluation of this model was recorded where it was exported."
_NO_TERMS = "They were not counted where it was exported."
_NO_CONFIG = "How it was trained was not recorded where it was exported."


def _title(model: SavedModel) -> str:
    parts = [part for part in re.split(r"[/\\]", model.name) if part not in ("", ".")]
    # For a stage, the names of run and stage; for another folder, its own name.
    both = model.config is not None or public.is_hub_id(model.name)
    return "/".join(parts[-2:] if both else parts[-1:]) or model.spec.head


def _about(model: SavedModel) -> str:
    spec, encoder = model.spec, model.spec.encoder
    about = _HEADS.get(spec.head, f"a retriever with the head `{spec.head}`")
    if "source" in spec.views:
        about += " and, with LexEcho, of its own tokens"
    if "surface" in spec.views:
        about += ", and of its character n-grams"
    if not spec.encodes_queries:
        about += ", a query a bag of its own words that needs no encoder"
    views = ", ".join(f"`{name}` {size:,}" for name, size in spec.views.items())
    return (
        f"{about[0].upper()}{about[1:]}. Exported by lsrjax.\n\n"
        f"- encoder: {encoder.family}, {encoder.num_layers} layers,"
        f" {encoder.hidden_size} wide, {encoder.vocab_size:,} tokens, texts of up to"
        f" {encoder.max_length} tokens\n"
        f"- views and their sizes: {views}\n"
        f"- texts were cut to {model.query_length} (queries) and"
        f" {model.document_length} (documents) tokens"
        + _prompt("queries", spec.query_prompt)
        + _prompt("documents", spec.document_prompt)
        + "\n- their tokens are left out of the pooling" * (not spec.includes_prompt)
    )


def _prompt(texts: str, prompt: str) -> str:
    return f"\n- stands before {texts}: {json.dumps(prompt)}" if prompt else ""


def _sources(model: SavedModel) -> list[tuple[str, str, str]]:
    """Distinct (what, where from, licence) of everything that went into the model."""
    if model.config is None:
        licence = _licence_of(model.name)
        return [("weights", public.reference(model.name), licence)]
    found: dict[tuple[str, str, str], None] = {}
    for name, stage in lineage(model):
        of = f" of stage `{name}`" if name else ""
        for field, reference in references.of_stage(stage).items():
            if not reference.startswith("stage:"):
                licence = _licence_of(reference)
                if reference.startswith("embedded:"):
                    licence = "of the texts that ship with lsrjax, as they are"
                role = references.purpose(field)
                found[(role + of, public.reference(reference), licence)] = None
        for data in _data_sets(stage.get("data", {})):
            embedded = data == _EMBEDDED
            licence = _EMBEDDED_LICENCE if embedded else _UNKNOWN
            found[("data" + of, data, licence)] = None
    return list(found)


def _licence_of(reference: str) -> str:
    """A model's licence, or where to look it up."""
    look_up = public.is_hub_id(reference)
    return LICENCES.get(reference, f"{_SEE} {reference}" if look_up else _UNKNOWN)


def lineage(model: SavedModel) -> list[tuple[str, Mapping[str, Any]]]:
    """The stage that trained a model and those it builds on, as (name, config).

    The model's own stage comes first, with the name "".
    """
    stages = [("", model.config or {})]
    for _, config in stages:  # grows during the loop
        for reference in references.of_stage(config).values():
            name = reference.removeprefix("stage:")
            known = {earlier for earlier, _ in stages}
            if name != reference and name in model.stages and name not in known:
                stages.append((name, model.stages[name]))
    return stages


def _data_sets(data: Mapping[str, Any]) -> list[str]:
    if task := (data.get("task") or {}).get("name"):
        return [f"the task {task}"]
    sets = [one for one in (data.get("sets") or {}).values()] or [data]
    names = []
    for one in sets:
        source = one.get("source", "")
        # Models of earlier releases have the source's options beside its name.
        source = source if isinstance(source, Mapping) else {**one, "name": source}
        if source.get("name") == "debian":
            names.append(_EMBEDDED)
        elif found := source.get("files") or source.get("dataset"):
            several = [found] if isinstance(found, str) else found
            shown = public.files if source.get("files") else public.reference
            names.append(", ".join(map(shown, several)))
    return names


def _licence(sources: Sequence[tuple[str, str, str]]) -> str:
    """The licence for the front matter: that of the models, if they agree."""
    licences = {
        licence
        for what, reference, licence in sources
        if not what.startswith(("data", "tokenizer"))
    }
    licences = {_UNKNOWN if one.startswith(_SEE) else one for one in licences}
    if len(licences) == 1:
        return licences.pop()
    return _UNKNOWN if _UNKNOWN in licences or not licences else "other"


def _front_matter(model: SavedModel, sources, library: str) -> str:
    base = {
        name
        for what, name, _ in sources
        if what.split()[0] in ("start", "encoder", "head", "weights")
        and re.fullmatch(r"[\w-]+/[\w.-]+", name)
        and name in LICENCES
    }
    embeds = model.spec.head in ("dense", "colbert")
    data = ModelCardData(
        language=_languages(model) or None,
        license=_licence(sources),
        library_name=library,
        pipeline_tag="sentence-similarity" if embeds else "feature-extraction",
        tags=["lsrjax", "retrieval", *_TAGS.get(model.spec.head, ())],
        base_model=sorted(base) or None,
        model_name=_title(model),
        eval_results=list(_measured(model)) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _measured(model: SavedModel) -> Iterator[EvalResult]:
    """Results for the hub: the run's evaluation, and that on its dev data."""
    dev = ", ".join(_data_sets((model.config or {}).get("dev", {}))) or "dev data"
    found = [
        (f"{_EMBEDDED}: {language}", name, value)
        for language, values in (model.results or {}).items()
        for name, value in values.items()
        if name in METRICS
    ]
    found += [(dev, name, value) for name, value in model.dev.items()]
    for data, name, value in found:
        yield EvalResult(
            task_type="text-retrieval",
            dataset_type=data,
            dataset_name=data,
            metric_type=name.lower().replace("@", "_at_"),
            metric_name=name,
            metric_value=value,
        )


def _languages(model: SavedModel) -> list[str]:
    """The languages of the evaluation; for a MILCO without one, "multilingual"."""
    found = sorted(set(model.results or {}) - {"mean", "worst"})
    return found or (["multilingual"] if model.spec.head == "milco" else [])


def _made_from(sources: Sequence[tuple[str, str, str]]) -> str:
    if not sources:
        return "Random weights; what data it was trained on was not recorded."
    lines = ["| what | from | licence |", "| --- | --- | --- |"]
    lines += [
        "| " + " | ".join(part.replace("|", r"\|") for part in source) + " |"
        for source in sources
    ]
    return (
        "\n".join(lines) + "\n\nWhoever passes this model on has to keep to these"
        " licences; where one is unknown, ask its source."
    )


def _recipe(model: SavedModel) -> str:
    config = model.config
    if config is None:
        return _NO_CONFIG
    lines = []
    for name, stage in lineage(model):
        facts = _facts(stage)
        title = f"Before, stage `{name}`: " if name else ""
        lines.append(f"- {title}{facts}")
    return "\n".join(lines)


def _facts(stage: Mapping[str, Any]) -> str:
    def of(part: str, field: str) -> Any:
        return stage.get(part, {}).get(field)

    penalty = of("regularizer", "query") or 0.0, of("regularizer", "document") or 0.0
    losses = {name: of("loss", name).get("weight", 1) for name in stage.get("loss", {})}
    summed = " + ".join(
        name if weight == 1 else f"{weight:g} {name}" for name, weight in losses.items()
    )
    length = (
        f"{stage['steps']:,} steps"
        if stage.get("steps")
        else f"{stage.get('epochs', 0):g} epochs"
    )
    facts = [
        f"loss `{summed}`",
        f"{length} of {stage.get('batch_size', 0):,} examples",
        f"learning rate {of('optim', 'lr'):g} ({of('optim', 'schedule')})"
        if of("optim", "lr") is not None
        else "",
        f"regularizer `{of('regularizer', 'name')}`, lambda {penalty[0]:g} (queries)"
        f" and {penalty[1]:g} (documents)"
        if any(penalty)
        else "no regularizer",
        f"group size {of('data', 'group_size')}",
        f"seed {stage.get('seed')}",
    ]
    return ", ".join(fact for fact in facts if fact)


def _evaluation(model: SavedModel) -> str:
    """The tables of results, and those on the dev data; or that there are none."""
    parts = [model.evaluation.strip()] if model.evaluation.strip() else []
    if model.dev:
        data = (model.config or {}).get("dev", {})
        named = f" ({', '.join(names)})" if (names := _data_sets(data)) else ""
        lines = ["| metric | dev data |", "| --- | ---: |"]
        lines += [f"| {name} | {value:.4f} |" for name, value in model.dev.items()]
        parts.append(f"On the dev data{named}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or _NO_EVALUATION


def _active_terms(model: SavedModel) -> str:
    if not model.spec.sparse:
        return "It has embeddings, not terms."
    lines = ["| language | query | document |", "| --- | ---: | ---: |"]
    for language, values in (model.results or {}).items():
        if {"query_terms", "document_terms"} <= set(values):
            counts = f"{values['query_terms']:.1f} | {values['document_terms']:.1f}"
            lines.append(f"| {language} | {counts} |")
    if len(lines) > 2:
        return "\n".join(lines)
    return _NO_TERMS if model.dev else _NO_EVALUATION


def _config(model: SavedModel) -> str:
    blocks = [("The model", _spec(model))]
    if model.config is not None:
        config = {k: v for k, v in model.config.items() if k not in ("stages",)}
        blocks.append(("Training", public.tree(config)))
    return "\n\n".join(
        f"<details><summary>{title}</summary>\n\n```json\n"
        f"{json.dumps(values, indent=2, ensure_ascii=False)}\n```\n\n</details>"
        for title, values in blocks
    )


def _spec(model: SavedModel) -> dict[str, Any]:
    values = model.spec.to_dict()
    # Lists of hundreds of ids do not help a reader.
    values["options"] = {
        name: value
        for name, value in values["options"].items()
        if not (isinstance(value, tuple) and len(value) > _SHOWN)
    }
    return values
