"""Fields of configs of earlier releases, and their new places."""

import re

_HEAD = (
    "lexecho repeats exclude_special_tokens pool_mask tied pooling queries"
    " embedding_size view_weights normalize latents active_latents revived_latents"
    " dead_after expand_queries skip_punctuation"
)
_LOSS = {
    "temperature": "kl",
    "teacher_scale": "kl",
    "margins": "margin_mse",
    "both_directions": "infonce",
    "mask_same_text": "infonce",
    "false_negative_margin": "infonce",
    "view_weights": "m3",
    "auxiliary": "reconstruction",
}
MOVED = {
    **{
        f"model.{name}": f"it is an option of the head, c.model.head.{name} = …"
        for name in _HEAD.split()
    },
    **{
        f"loss.{name}": "it is an option of a loss,"
        f' c.loss = {{"{loss}": {{"{name}": …}}}}'
        for name, loss in _LOSS.items()
    },
    "loss.infonce_temperature": "it is an option of infonce and m3,"
    ' c.loss = {"infonce": {"temperature": …}}',
    "init.static": "static queries that start at their words' idf are"
    " c.init.idf_queries = {}",
    "init.from_pivot": "it is an option of the head's initialisation,"
    ' c.init.head = {"model": …, "encoder": "translations"}',
    "init.echo": "a source view that starts at the tokens' idf is"
    ' c.init.idf_echo = {"scale": …}',
    "init.echo_scale": 'it is c.init.idf_echo = {"scale": …}',
    "regularizer.warmup_steps": "it is an option of the schedule,"
    ' c.regularizer.schedule = entry("quadratic", steps=…)',
}


def place(field: str) -> str | None:
    """The new place of a dotted field of an earlier release; None for any other."""
    return MOVED.get(".".join(field.split(".")[-2:]))


def in_line(line: str) -> list[str]:
    """Messages about moved fields that a line of a config sets."""
    found = re.findall(r"\.((?:model|init|loss|regularizer)\.\w+)", line)
    return [
        f"config.{name} has moved: {MOVED[name]}" for name in found if name in MOVED
    ]
