"""Config of NorBERT3 for the model code beside it."""

from __future__ import annotations

from transformers import PretrainedConfig


class NorbertConfig(PretrainedConfig):
    """What fixes a NorBERT3's parameters and its computation.

    Attributes:
      position_bucket_size: buckets of distances to either side, and that of none.
      silent_terms: the first ids, special tokens, that the masked LM never predicts.

    The other fields are those of BERT.
    """

    def __init__(
        self,
        vocab_size: int = 50_000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 512,
        position_bucket_size: int = 32,
        silent_terms: int = 107,
        layer_norm_eps: float = 1e-7,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        pad_token_id: int | None = 3,
        **kwargs,
    ):
        """Keeps the fields; transformers also calls it without any."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_bucket_size = position_bucket_size
        self.silent_terms = silent_terms
        self.layer_norm_eps = layer_norm_eps
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        # The decoder is a parameter of its own, equal to the word table or not.
        kwargs["tie_word_embeddings"] = False
        super().__init__(pad_token_id=pad_token_id, **kwargs)
