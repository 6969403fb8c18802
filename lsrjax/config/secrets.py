"""Finds passwords and tokens in configs, which are stored and published."""

import re

from ml_collections import ConfigDict

_TOKENS = {
    "of the Hugging Face hub": r"\bhf_[A-Za-z0-9]{20,}",
    "of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    "of GitLab": r"\bglpat-[\w-]{15,}",
    "of OpenAI or the like": r"\bsk-[\w-]{20,}",
    "of AWS": r"\bAKIA[A-Z0-9]{16}\b",
    "of Weights & Biases": r"(?i)wandb\W{0,3}(?:api)?\w*\W+[0-9a-f]{40}\b",
    "in an address": r"\b\w+://[^/\s:@'\"]+:[^/\s:@'\"]+@",
}


def kinds_in(text: str) -> list[str]:
    """The kinds of tokens in a text, as "of GitHub"."""
    return [kind for kind, pattern in _TOKENS.items() if re.search(pattern, text)]


def in_config(config: ConfigDict, where: str = "config") -> list[tuple[str, str]]:
    """The fields of a config that contain a token, each with its kind."""
    found = []
    for name, value in config.items():
        field = f"{where}.{name}"
        if isinstance(value, ConfigDict):
            found += in_config(value, field)
        else:
            found += [(field, kind) for kind in kinds_in(str(value))]
    return found


def hidden(text: str, token: str | None = None) -> str:
    """The text with stars in place of tokens, of `token` too."""
    text = text.replace(token, "***") if token else text
    for pattern in _TOKENS.values():
        text = re.sub(pattern, "***", text)
    return text


def message(where: str, kind: str) -> str:
    """The message about a token in a field or a line of a file, without the token."""
    return (
        f"{where} holds a token {kind}. Configs are kept beside the run; remove it"
        " (revoke it if the file was shared) and log in with `hf auth login` or an"
        " environment variable."
    )
