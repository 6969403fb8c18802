"""Initialisations: where the student's weights come from, in place of noise.

To add one: write an `Initialisation` here, and add a line to `INITIALISATIONS`. A
config names any number of them, as `{"encoder": {"model": "…"}, "lexical": {}}`; they
are applied in the table's order, your own, by dotted name, last.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lsrjax import options as options_
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.errors import InputError
from lsrjax.initial import fit_lookups, fit_to_data, warm_start
from lsrjax.initial.start import Initialisation
from lsrjax.losses import objective
from lsrjax.models import heads, retriever
from lsrjax.models.retriever import towers_of
from lsrjax.options import Chosen, Options, option


@dataclasses.dataclass(frozen=True)
class OfModel(Options):
    """The option of an initialisation from a model."""

    model: str = option(
        "",
        "a Hugging Face folder or hub id, a stage's folder in a work directory, or"
        " stage:NAME, a stage of this run",
        problem=lambda name: None if name else "name a model",
    )


@dataclasses.dataclass(frozen=True)
class ModelOptions(OfModel):
    """Of `Model`."""

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses what would initialise the same parameters."""
        for one in of(stage.init):
            if one.entry.fresh or (
                one.entry.gives_encoder and not one.entry.gives_head
            ):
                at = where.removesuffix(".model")
                raise InputError(
                    f"{at}: model gives the whole retriever; leave {one.name} out."
                )


class Model(Initialisation):
    """A stage's whole retriever; parameters it lacks start fresh.

    Of a model whose head has the student's as a part, that part.
    """

    Options = ModelOptions
    gives_encoder = True
    gives_head = True

    @staticmethod
    def spec_fields(head, options, model):
        """The head's options, as far as the weights decide them."""
        named = {one: name for name, one in heads.HEADS.items()}
        theirs = heads.head_class(model.spec.head)
        if named.get(head) in theirs.parts:
            return {}
        if head is not theirs:
            raise InputError(
                f"config.init.model: {model.name} has the head {model.spec.head!r}, but"
                f" config.model.head is {named.get(head, head.__name__)!r}."
            )
        return {
            "options": options_.carried(options, model.spec.options),
            "most_active": model.spec.most_active,
        }

    @staticmethod
    def pivot_tokenizer(model):
        """The one of the model."""
        return model.pivot_tokenizer

    @staticmethod
    def weights(params, options, model, start):
        """All of the model's weights."""
        found = towers_of(model.params)[0]
        theirs = heads.head_class(model.spec.head)
        if start.head is not theirs:
            part = theirs.parts[start.spec.head]
            found = found | {"head": found["head"][part]}
        return warm_start.overlaid(params, found, model.name)


class Encoder(Initialisation):
    """The encoder of a model; of a masked language model also the head, for SPLADE."""

    Options = OfModel
    gives_encoder = True

    @staticmethod
    def spec_fields(head, options, model):
        """The options of a head that is taken over."""
        has = set(model.params)
        if heads.head_class(model.spec.head) is not head:
            has -= {"head"}
        else:
            # What has no parameters, such as a tied decoder, is missing in none.
            has |= set(head.starts_from) - set(retriever.split(model.spec)[1])
        if missing := set(head.starts_from) - has:
            raise InputError(
                f"config.init.encoder: {model.name} has no masked-LM {missing.pop()},"
                f" which {head.__name__} starts from. Use a masked language model."
            )
        if "head" not in head.starts_from:
            return {}
        return {
            "options": head.as_trained(options, model),
            "most_active": model.spec.most_active,
        }

    @staticmethod
    def weights(params, options, model, start):
        """The parts that the head starts from."""
        parts = set(start.head.starts_from) & set(model.params)
        taken = {part: model.params[part] for part in parts}
        return warm_start.overlaid(params, taken, model.name)


def _check_pairs(stage: Any, what: str) -> None:
    """Refuses a stage without training pairs to learn translations from."""
    loss = objective.of(stage.loss)
    if loss.kind != "pair":
        raise InputError(
            f"{what} needs training pairs, and the loss {loss.name} has none. Start in"
            " an alignment stage."
        )


def _check_untrained(
    models: Mapping[str, SavedModel], part: str, what: str, name: str
) -> None:
    """Refuses to start a part of the head that a model gives, which was trained."""
    for by, model in models.items():
        whole = getattr(INITIALISATIONS.get(by), "gives_head", False)
        if whole and part in model.params.get("head", {}):
            raise InputError(
                f"config.init.{name} would have no effect: {model.name} has a {what}"
                " that was trained. Remove it."
            )


@dataclasses.dataclass(frozen=True)
class PivotOptions(OfModel):
    """Of `Pivot`."""

    when: ClassVar = ("pivot head",)
    encoder: str = option(
        "",
        "also start the encoder from the model's layers, and from its embeddings:"
        " shared (of tokens in both vocabularies) | translations (of the words that"
        " each token translates to in the training pairs; then those shared)",
        choices=("", "shared", "translations"),
        when="fresh weights",
    )

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses translations without training pairs."""
        if self.encoder == "translations":
            _check_pairs(stage, f"{where}.encoder = 'translations'")


class Pivot(Initialisation):
    """MILCO's head: a copy of an English masked LM's or SPLADE's."""

    Options = PivotOptions
    fresh = True

    @staticmethod
    def spec_fields(head, options, model):
        """The sizes of the head that is copied."""
        if "head" not in model.params:
            raise InputError(
                f"config.init.head: {model.name} has no masked-LM head to copy."
            )
        return {"options": head.on_pivot(options, model)}

    @staticmethod
    def pivot_tokenizer(model):
        """The one of the model's encoder."""
        return model.tokenizer

    @staticmethod
    def weights(params, options, model, start):
        """The head, and with `encoder` the encoder's layers and embeddings."""
        mlm = dict(model.params["head"]["mlm"])
        words = model.params["encoder"]["embeddings"]["word"]["embedding"]
        mlm.setdefault("decoder", words)  # a tied one
        params = warm_start.overlaid(params, {"head": {"mlm": mlm}}, model.name)
        if not options.encoder:
            return params
        translated = options.encoder == "translations"
        return fit_to_data.from_pivot(params, model, start, translated)


@dataclasses.dataclass(frozen=True)
class LexicalOptions(Options):
    """Of `Lexical`."""

    when: ClassVar = ("word head", "fresh weights")


class Lexical(Initialisation):
    """A SPLADE that starts as a weighted bag of the text's own words."""

    Options = LexicalOptions
    fresh = True

    @staticmethod
    def check(spec, models):
        """Refuses heads without a dense layer and a bias, which it sets."""
        mlm = retriever.split(spec)[1].get("head", {}).get("mlm", {})
        dense = mlm.get("transform", {}).get("dense", {})
        if "bias" not in dense or "bias" not in mlm:
            raise InputError(
                f"config.init.lexical sets the biases of the head, and that of a"
                f" {spec.encoder.family} has none. Leave it out, or choose another"
                " model.family, such as 'bert'."
            )

    @staticmethod
    def weights(params, options, model, start):
        """Word embeddings, and a head that recognizes them."""
        return warm_start.lexical(params, start.idf_V, start.seed)


@dataclasses.dataclass(frozen=True)
class IdfQueriesOptions(Options):
    """Of `IdfQueries`."""

    when: ClassVar = ("static queries",)


class IdfQueries(Initialisation):
    """Static queries whose words weigh their idf in the training documents."""

    Options = IdfQueriesOptions
    fresh = True

    @staticmethod
    def weights(params, options, model, start):
        """The weights of words."""
        idf = start.idf_V.astype(np.float32)
        idf[list(start.spec.special_ids)] = 0
        return warm_start.merged(params, {"head": {"static": idf}})


@dataclasses.dataclass(frozen=True)
class IdfEchoOptions(Options):
    """Of `IdfEcho`."""

    when: ClassVar = ("source view",)
    scale: float = option(0.5, "a token starts at scale * sqrt(its idf)", above=0)


class IdfEcho(Initialisation):
    """LexEcho fitted to the tokens' idf; otherwise it is random, as the reference's."""

    Options = IdfEchoOptions

    @staticmethod
    def check(spec, models):
        """Refuses a source view that was trained."""
        _check_untrained(models, "echo", "source view", "idf_echo")

    @staticmethod
    def weights(params, options, model, start):
        """The source view, and a direction of the word embeddings for it."""
        return fit_to_data.with_echo(params, start, options.scale)


@dataclasses.dataclass(frozen=True)
class TranslationsOptions(Options):
    """Of `Translations`."""

    when: ClassVar = ("translations",)
    scale: float = option(
        1.0, "a translation starts at scale * sqrt(its probability * its idf)", above=0
    )

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses a stage without training pairs."""
        _check_pairs(stage, where)


class Translations(Initialisation):
    """The pivot view's translations of tokens, from the training pairs (IBM Model 1).

    The probabilities of Brown et al. 1993, of tokens of the two vocabularies and, with
    the head's option `stems`, of the beginnings of words; English texts are pairs with
    themselves. The idf is relative to the largest.
    """

    Options = TranslationsOptions
    fresh = True

    @staticmethod
    def weights(params, options, model, start):
        """The tables of the head."""
        found = fit_lookups.translations(start, options.scale)
        return warm_start.merged(params, {"head": found})


@dataclasses.dataclass(frozen=True)
class NgramsOptions(Options):
    """Of `Ngrams`."""

    when: ClassVar = ("n-grams",)
    scale: float = option(0.1, "a column starts at scale * sqrt(its idf)", above=0)


class Ngrams(Initialisation):
    """The view of n-grams: the characters of tokens, and weights by idf."""

    Options = NgramsOptions

    @staticmethod
    def check(spec, models):
        """Refuses a view that was trained."""
        _check_untrained(models, "ngrams", "view of n-grams", "ngrams")

    @staticmethod
    def weights(params, options, model, start):
        """The view's tables."""
        found = fit_lookups.ngrams(start, options.scale)
        return warm_start.merged(params, {"head": {"ngrams": found}})


INITIALISATIONS: dict[str, type[Initialisation]] = {
    "model": Model,
    "encoder": Encoder,
    "head": Pivot,
    "lexical": Lexical,
    "idf_queries": IdfQueries,
    "idf_echo": IdfEcho,
    "translations": Translations,
    "ngrams": Ngrams,
}


def of(config: Mapping[str, Any], where: str = "config.init") -> list[Chosen]:
    """The initialisations of a stage's `config.init`, in the order they are applied.

    Raises:
      InputError: an unknown initialisation or option.
    """
    found = options_.resolve_each(INITIALISATIONS, config, where)
    for one in found:
        if not hasattr(one.entry, "spec_fields"):
            raise InputError(
                f"{where} names {one.name!r}, which is no Initialisation of"
                " lsrjax/initial/start.py."
            )
    order = {name: place for place, name in enumerate(INITIALISATIONS)}
    return sorted(found, key=lambda one: order.get(one.name, len(order)))


def check(stage: Any, where: str) -> None:
    """Checks the initialisations of a stage's config; `where` names it, for errors.

    Raises:
      InputError: initialisations that do not fit the head or each other.
    """
    found = of(stage.init, f"{where}.init")
    head = heads.chosen(stage.model.head, f"{where}.model.head")
    copied = any(one.entry is Pivot or one.entry.gives_head for one in found)
    if head.entry.copies_pivot and not copied:
        raise InputError(
            f"{where}.init.head is missing, the masked LM or SPLADE whose head"
            f" {head.name} copies. Name its model, c.init.head = …, or a whole"
            " retriever, c.init.model = …."
        )
