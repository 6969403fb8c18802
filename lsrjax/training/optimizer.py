"""The optimizer of a stage: clipping, decay, learning rates and freezing by path."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lsrjax import optimizers
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
        raise InputError(
            f"config.optim.freeze = {pattern!r} matches"
            f" {sum(flags)} of {len(flags)} parameters:\n  {_listing(params)}"
        )
    return found


def _listing(params) -> str:
    names = jax.tree_util.tree_leaves_with_path(params)
    return "\n  ".join(path_name(path) for path, _ in names)


def group_rates(config) -> dict[str, float]:
    """The multiple of the learning rate of each of `optim.groups`, by its pattern."""
    return {
        pattern: own["lr"] / config.lr if "lr" in own else own["times"]
        for pattern, own in config.groups.items()
        if "lr" in own or "times" in own
    }


def logged_rates(config) -> dict[str, float]:
    """`group_rates` by their names in the log, such as `lr_head_static`."""
    found: dict[str, float] = {}
    for position, (pattern, times) in enumerate(group_rates(config).items()):
        # A slash would stand before a language.
        name = "_".join(["lr", *re.findall(r"\w+", pattern)])
        found[f"{name}_{position}" if name in found else name] = times
    return found


def _group_decays(config) -> dict[str, float]:
    """The weight decay of each of `optim.groups` that has its own, by its pattern."""
    return {
        pattern: own["weight_decay"]
        for pattern, own in config.groups.items()
        if "weight_decay" in own
    }


def _by_name(values: Mapping[str, float], what: str, names) -> dict[str, float]:
    """The value of each parameter whose path one of the patterns matches."""
    found: dict[str, str] = {}
    for pattern in values:
        matched = list(filter(re.compile(pattern).search, names))
        if not matched:
            raise InputError(
                f"config.optim.groups[{pattern!r}]: no parameter whose {what} it could"
                " set matches. Those that are trained"
                f" {'and decay ' if what == 'decay' else ''}are:\n  "
                + "\n  ".join(names)
            )
        if twice := next((name for name in matched if name in found), None):
            raise InputError(
                f"config.optim.groups: {found[twice]!r} and {pattern!r} both match"
                f" {twice}, and both set its {what}. Narrow one of the patterns."
            )
        found |= dict.fromkeys(matched, pattern)
    return {name: values[pattern] for name, pattern in found.items()}


def make_optimizer(config, total_steps: int, frozen: dict):
    """The optimizer of a stage's `optim`; `frozen` parameters have no moments.

    Raises:
      InputError: a pattern of `optim.groups` matches no parameter that is trained, or
        two match the same one.
    """
    chosen = optimizers.chosen(config.optimizer)
    still = jax.tree_util.tree_leaves_with_path(frozen)
    names = [path_name(path) for path, fixed in still if not fixed]
    spared = re.compile(config.no_decay).search if config.no_decay else lambda name: 0
    decayed = [name for name in names if not spared(name)]
    decays = dict.fromkeys(decayed, config.weight_decay)
    decays |= _by_name(_group_decays(config), "decay", decayed)
    rates = _by_name(group_rates(config), "learning rate", names)
    parts = [chosen.entry.fn(chosen.options)]
    for decay in dict.fromkeys([config.weight_decay, *decays.values()]):
        parts.append(optax.add_decayed_weights(decay, _having(decays, decay)))
    if chosen.entry.after_decay:
        parts.append(chosen.entry.after_decay(chosen.options))
    if rates:
        parts.append(_scaled(rates))
    parts.append(optax.scale_by_learning_rate(learning_rate(config, total_steps)))
    whole = [optax.chain(*parts)]
    if config.clip_norm:
        whole.insert(0, optax.clip_by_global_norm(config.clip_norm))
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition(
        {"trained": optax.chain(*whole), "frozen": optax.set_to_zero()}, labels
    )


def _having(values: Mapping[str, float], value: float) -> Callable[[Any], Any]:
    """Tree to tree of bools: whether a parameter has the value."""
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(path_name(path)) == value, tree
    )


def _scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of these parameters."""
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, u: u * factors.get(path_name(path), 1.0), updates
        )
    )
