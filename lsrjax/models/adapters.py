"""Adapters: what is trained beside weights that stay as they are.

To add one: write an `Adapter` here, and add a line to `ADAPTERS`. A config names any
number of them, as `{"lora": {"rank": 16}}`; all other parameters are frozen, and have
no optimizer state.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax

from lsrjax import options as options_
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models import heads, low_rank, prompt_rows, retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.options import Chosen, Options, bad_pattern, option

WHERE = "config.adapt"


class Adapter:
    """Base of all adapters.

    Attributes:
      Options: a dataclass of its options.
    """

    Options = Options

    @staticmethod
    def prompts(options: Any) -> Mapping[str, int]:
        """Vectors in front of texts that the student gets for it, by role."""
        return {}

    @staticmethod
    def added(
        params: dict, options: Any, spec: RetrieverSpec, seed: int, where: str
    ) -> dict:
        """The parameters with what it adds, which changes no result at first.

        Args:
          params: arrays, or in `jax.eval_shape`.
          options: an instance of `Options`.
          spec: of the student.
          seed: of the stage.
          where: the name of the options in the config, for errors.
        """
        raise NotImplementedError

    @staticmethod
    def trained(name: str, options: Any) -> bool:
        """Whether it trains the parameter of this path in `added`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LoRAOptions(Options):
    """Of `LoRA`."""

    paths: str = option(
        r"^(query_tower/)?encoder/(first|layers)/.*kernel$",
        "parameter paths (regex) of the kernels and tables that get factors; by default"
        " all kernels of the encoder's layers",
        problem=lambda paths: bad_pattern(paths) if paths else "name kernels to adapt",
    )
    rank: int = option(8, "of the products", above=0, high=2**12)
    alpha: float = option(16.0, "products are scaled by alpha / rank", above=0)
    also: str = option(
        "",
        "parameter paths (regex) that are trained whole beside the factors, such as"
        " ^head/ of a head without weights",
        problem=bad_pattern,
    )


class LoRA(Adapter):
    """Low-rank changes of kernels and tables.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022,
    arXiv:2106.09685): W + alpha / rank a b in place of a kernel W, of which a and b are
    trained.
    """

    Options = LoRAOptions

    @staticmethod
    def added(
        params: dict, options: LoRAOptions, spec: RetrieverSpec, seed: int, where: str
    ) -> dict:
        """The parameters with factors beside the kernels; b is 0."""
        rank, alpha = options.rank, options.alpha
        found = low_rank.with_factors(
            params, options.paths, rank, alpha, seed, f"{where}.paths"
        )
        also = [one for one in trees.named(found) if not low_rank.is_part(one)]
        if options.also and not any(LoRA.trained(one, options) for one in also):
            raise InputError(f"{where}.also = {options.also!r} matches no parameter.")
        return found

    @staticmethod
    def trained(name: str, options: LoRAOptions) -> bool:
        """Whether it is a factor, or trained whole."""
        if low_rank.is_part(name):
            return low_rank.is_factor(name)
        # What no trained model has starts from random weights.
        alone = {part for head in heads.HEADS.values() for part in head.training_only}
        if any(f"head/{part}/" in name for part in alone):
            return True
        return bool(options.also and re.search(options.also, name))


@dataclasses.dataclass(frozen=True)
class PromptOptions(Options):
    """Of `Prompt`."""

    when: ClassVar = ("ranking loss",)
    queries: int = option(8, "vectors in front of every query", low=0, high=2**10)
    documents: int = option(8, "vectors in front of every document", low=0, high=2**10)

    def problem(self) -> str | None:
        """Refuses no vectors at all."""
        if self.queries or self.documents:
            return None
        return "queries and documents are both 0, so there is no vector to train"

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses vectors in front of queries that no encoder reads."""
        head = heads.chosen(stage.model.head)
        if self.queries and not head.entry.encodes_queries(head.options):
            raise InputError(
                f"{where}.queries is {self.queries}, and queries of the head"
                f" {head.name} are not encoded. Set it to 0."
            )


class Prompt(Adapter):
    """Vectors in front of all queries, and others in front of all documents.

    Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021,
    arXiv:2104.08691). Each is the embedding of a token of its own, behind [CLS] where
    texts begin with it; the student has these tokens, see `initial.prompt_vectors`.
    """

    Options = PromptOptions

    @staticmethod
    def prompts(options: PromptOptions) -> dict[str, int]:
        """Those of queries and of documents."""
        return {"query": options.queries, "document": options.documents}

    @staticmethod
    def added(
        params: dict, options: PromptOptions, spec: RetrieverSpec, seed: int, where: str
    ) -> dict:
        """The parameters with the tokens' rows beside the word table."""
        first, (queries, documents) = spec.prompt_ids[0], vars(options).values()
        document, query = retriever.towers_of(params)
        if query is None:
            return prompt_rows.beside(document, first, queries + documents)
        # Each tower has those of its own texts.
        return retriever.with_query_tower(
            prompt_rows.beside(document, first + queries, documents),
            prompt_rows.beside(query, first, queries),
        )

    @staticmethod
    def trained(name: str, options: PromptOptions) -> bool:
        """Whether it is such a row."""
        return prompt_rows.is_rows(name)


ADAPTERS: dict[str, type[Adapter]] = {"lora": LoRA, "prompt": Prompt}


def of(config: Mapping[str, Any], where: str = WHERE) -> list[Chosen]:
    """The adapters of a stage's `config.adapt`.

    Raises:
      InputError: an unknown adapter or option.
    """
    return options_.resolve_each(ADAPTERS, config, where)


def prompts(found: Sequence[Chosen]) -> dict[str, int]:
    """Vectors in front of texts that a student gets for its adapters, by role."""
    counts: dict[str, int] = {}
    for one in found:
        counts |= one.entry.prompts(one.options)
    return counts


def added(
    found: Sequence[Chosen], spec: RetrieverSpec, params: dict, seed: int
) -> dict:
    """The parameters of a student with what adapters add to them.

    Raises:
      InputError: an adapter that does not fit the model.
    """
    for one in found:
        at = f"{WHERE}.{one.name}"
        params = one.entry.added(params, one.options, spec, seed, at)
    return params


def shapes(config, spec: RetrieverSpec) -> dict:
    """The abstract parameters of a stage's student, with those of its adapters."""
    params = retriever.split(spec)[1]
    found = of(config.adapt)
    if not found:
        return params
    return jax.eval_shape(partial(added, found, spec, seed=config.seed), params)


def frozen(found: Sequence[Chosen], params: dict) -> dict:
    """A tree of bools: the parameters that no adapter trains; without one, none."""

    def still(path, leaf):
        name = trees.path_name(path)
        return not any(one.entry.trained(name, one.options) for one in found)

    return jax.tree_util.tree_map_with_path(
        still if found else lambda path, leaf: False, params
    )
