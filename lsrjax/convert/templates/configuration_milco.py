"""Config of a MILCO retriever that carries those of its two parts."""

from __future__ import annotations

from transformers import PretrainedConfig


class MilcoConfig(PretrainedConfig):
    """What fixes a MILCO's parameters and its computation.

    Attributes:
      multilingual_config: content of the encoder's config.json.
      english_config: sizes of the English head: vocab_size, hidden_size and
        layer_norm_eps.
      echo: there is a source view, one weight for each of a text's own tokens.
      pool_mask: padding in the maximum over tokens: "exclude", or "multiply" (as 0,
        which changes negative logits, but no weight).
      repeats: "sum" or "max" over a token's repeats in the source view.
      exclude_special_tokens: leave `special_ids` out of the source view.
      translations: English terms that the pivot view has for each token whatever the
        encoder finds; 0: none.
      stems: buckets of the beginnings of words, which have such terms too; 0: none.
      ngrams: columns of a third view, of character n-grams; 0: none.
      special_ids: ids of the tokenizer's special tokens.
      query_prompt, document_prompt: text before every query or document.
      query_marker, document_marker: id behind their first token; -1: none.
      query_length, document_length: tokens they are cut to; None: the encoder's limit.
      pivot_tokenizer: subfolder of the English tokenizer.

    The other fields are those of the reference implementation's config.
    """

    model_type = "milco"

    def __init__(
        self,
        multilingual_config: dict | None = None,
        english_config: dict | None = None,
        echo: bool = False,
        pool_mask: str = "exclude",
        repeats: str = "sum",
        exclude_special_tokens: bool = False,
        translations: int = 0,
        stems: int = 0,
        ngrams: int = 0,
        special_ids: list[int] | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        query_marker: int = -1,
        document_marker: int = -1,
        query_length: int | None = None,
        document_length: int | None = None,
        pivot_tokenizer: str = "pivot_tokenizer",
        lsr_encoder_checkpoint: str = "",
        multilingual_encoder_checkpoint: str = "",
        model_variant: str = "bert",
        lambda_q: float = 0.0,
        lambda_d: float = 0.0,
        sparse_reg: str = "l1",
        **kwargs,
    ):
        """Keeps the fields; transformers also calls it without any."""
        self.multilingual_config = dict(multilingual_config or {})
        self.english_config = dict(english_config or {})
        self.echo = echo
        self.pool_mask = pool_mask
        self.repeats = repeats
        self.exclude_special_tokens = exclude_special_tokens
        self.translations = translations
        self.stems = stems
        self.ngrams = ngrams
        self.special_ids = list(special_ids or ())
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.query_marker = query_marker
        self.document_marker = document_marker
        self.query_length = query_length
        self.document_length = document_length
        self.pivot_tokenizer = pivot_tokenizer
        self.lsr_encoder_checkpoint = lsr_encoder_checkpoint
        self.multilingual_encoder_checkpoint = multilingual_encoder_checkpoint
        self.model_variant = model_variant
        self.lambda_q = lambda_q
        self.lambda_d = lambda_d
        self.sparse_reg = sparse_reg
        # Fields of the reference that follow from the parts.
        for prefix, part in (
            ("en", self.english_config),
            ("m", self.multilingual_config),
        ):
            for size in ("vocab_size", "hidden_size"):
                kwargs.setdefault(f"{prefix}_{size}", part.get(size))
        # The decoder is tied to nothing.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)
