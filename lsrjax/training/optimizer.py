"""AdamW with a schedule, decay and freezing by parameter path."""

import re
from collections.abc import Callable

import jax
import optax

from lsrjax.distributed.trees import path_name
from lsrjax.errors import InputError


def matches(pattern: str, params) -> dict:
    """A tree of bools: whether the regex matches somewhere in the parameter's path."""
    found = re.compile(pattern).search if pattern else lambda name: None
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found(path_name(path)) is not None, params
    )


def learning_rate(config, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Step to learning rate: a linear warm-up from 0, then the schedule."""
    warmup = config.warmup_steps or round(config.warmup_fraction * total_steps)
    after = max(total_steps - warmup, 1)
    schedule = {
        "constant": lambda: optax.constant_schedule(config.lr),
        "linear": lambda: optax.linear_schedule(config.lr, 0.0, after),
        "cosine": lambda: optax.cosine_decay_schedule(config.lr, after),
    }[config.schedule]()
    rise = optax.linear_schedule(0.0, config.lr, warmup)
    return optax.join_schedules([rise, schedule], [warmup]) if warmup else schedule


def frozen(pattern: str, params) -> dict:
    """A tree of bools: the parameters whose path matches a stage's `optim.freeze`.

    Raises:
      InputError: the pattern matches no parameter, or all of them.
    """
    found = matches(pattern, params)
    flags = jax.tree.leaves(found)
    if pattern and (not any(flags) or all(flags)):
        names = jax.tree_util.tree_leaves_with_path(params)
        listing = "\n  ".join(path_name(path) for path, _ in names)
        raise InputError(
            f"config.optim.freeze = {pattern!r} matches"
            f" {sum(flags)} of {len(flags)} parameters:\n  {listing}"
        )
    return found


def make_optimizer(config, total_steps: int, frozen: dict):
    """The optimizer of a stage's `optim`; `frozen` parameters have no moments."""
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map(
                lambda excluded: not excluded, matches(config.no_decay, tree)
            ),
        )
    )
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition(
        {"trained": optax.chain(*parts), "frozen": optax.set_to_zero()}, labels
    )
