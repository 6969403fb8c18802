"""Reports how transformers' AutoTokenizer reads folders; a separate program.

    python -P run_transformers.py QUESTION ANSWER

QUESTION is a JSON file with `folders` and `texts`, ANSWER one with an object for each
folder. So a training process imports neither transformers nor torch, and nothing that
reads an untrusted folder shares a process with it.
"""

import json
import sys


def main(question: str, answer: str) -> None:
    """Answers a question for all its folders."""
    # transformers imports torch if it is installed; tokenizers do not need it.
    sys.modules["torch"] = None  # type: ignore[assignment]  # as importlib allows
    with open(question, encoding="utf-8") as file:
        asked = json.load(file)
    found = [_answer(folder, asked["texts"]) for folder in asked["folders"]]
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(found, file)


def _answer(folder: str, texts: list[str]) -> dict:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if not tokenizer.is_fast:
            return {"slow": type(tokenizer).__name__}
        return _described(tokenizer, texts)
    # The libraries raise anything, plain Exception included.
    except Exception as error:
        said = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {said}", "slow": _slow(folder)}


def _slow(folder: str) -> str | None:
    """The class that a folder names, if it has no fast version."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import (
        get_tokenizer_config,
        tokenizer_class_from_name,
    )

    try:
        name = get_tokenizer_config(folder, local_files_only=True)["tokenizer_class"]
        found = tokenizer_class_from_name(name)
    # A config that is no JSON, or names no class, or one whose package is not there.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None
    fast = isinstance(found, type) and issubclass(found, PreTrainedTokenizerFast)
    return None if found is None or fast else name


def _described(tokenizer, texts: list[str]) -> dict:
    own = sorted(tokenizer.get_added_vocab())[:200]
    texts = [*texts, *(f"a {token} b{token}c" for token in own)]
    texts.append(" ".join(texts))
    probes = []
    for options in ({}, {"truncation": True, "max_length": 8}):
        for special in (True, False):
            found = tokenizer(texts, add_special_tokens=special, **options)
            probes.append((options.get("max_length"), special, found["input_ids"]))
            types = found.get("token_type_ids") or [[]]
            if any(map(any, types)):
                return {"error": "it gives the tokens of a single text several types"}
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    roles = tokenizer.special_tokens_map
    return {
        "class": type(tokenizer).__name__,
        "json": backend.to_str(),
        "roles": {key: token for key, token in roles.items() if isinstance(token, str)},
        "truncation_side": tokenizer.truncation_side,
        "padding_side": tokenizer.padding_side,
        "splits_special": backend.encode_special_tokens,
        "max_length": tokenizer.model_max_length,
        "input_names": list(tokenizer.model_input_names),
        "texts": texts,
        "probes": probes,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
