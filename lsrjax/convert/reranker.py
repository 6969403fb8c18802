"""Decoders as cross-encoders that read a pair within a prompt."""

import dataclasses

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models.backbones.table import backbone
from lsrjax.models.cross_encoder import CrossEncoderSpec, Question
from lsrjax.options import no_effect


def asked(model: SavedModel, question: Question, where: str) -> SavedModel:
    """The model, as a cross-encoder that reads the prompt, if there is one.

    A language model's score is that of its answers, a sequence classifier's its own.

    Args:
      where: the name of the question's options, for errors.

    Raises:
      InputError: it is no decoder with one of these heads, or an answer is no single
        token.
    """
    if not question.prompt:
        return model
    decodes = backbone(model.spec.encoder.family).task == "text-generation"
    if isinstance(model.spec, CrossEncoderSpec) and decodes:
        return _classifier(model, question, where)
    head = model.params.get("head", {}).get("mlm")
    encoder = model.spec.encoder
    if head is None or not decodes:
        raise InputError(
            f"{where}prompt is set, but {model.name} is no decoder with a language"
            " model's head, such as Qwen3ForCausalLM, which could answer it. Remove the"
            " prompt, or take another model."
        )
    tokenizer = TextTokenizer(model.tokenizer)
    answers = [_token(tokenizer, question.yes, f"{where}yes")]
    if question.no:
        answers.append(_token(tokenizer, question.no, f"{where}no"))
    if len(set(answers)) < len(answers):
        raise InputError(f"{where}yes and {where}no are both {question.no!r}.")
    words = model.params["encoder"]["embeddings"]["word"]["embedding"]
    rows = head.get("decoder", words)[answers]
    return dataclasses.replace(
        model,
        spec=CrossEncoderSpec(encoder, question.prompt, len(answers)),
        params={"encoder": model.params["encoder"], "classifier": {"answers": rows}},
    )


def _classifier(model: SavedModel, question: Question, where: str) -> SavedModel:
    for name in ("yes", "no"):
        value = getattr(question, name)
        if value != getattr(Question, name):
            because = f"{model.name} is a sequence classifier, which gives no answer"
            raise InputError(f"{where}{no_effect(name, value, because)}")
    spec = dataclasses.replace(model.spec, prompt=question.prompt)
    return dataclasses.replace(model, spec=spec)


def _token(tokenizer: TextTokenizer, answer: str, where: str) -> int:
    (ids,) = tokenizer.ids([answer], 16, special=False)
    # A token of the vocabulary as it is spelled there, which a mark may begin.
    ids = [tokenizer.vocabulary().get(answer, -1)] if len(ids) != 1 else ids
    if ids[0] < 0:
        raise InputError(
            f"{where} is {answer!r}, which is no single token of the model's tokenizer."
            " Give a word that is one, such as 'Yes'."
        )
    return ids[0]
