"""Config of NorBERT4 for the model code beside it."""

from __future__ import annotations

from transformers import PretrainedConfig


class GptBertConfig(PretrainedConfig):
    """What fixes a NorBERT4's parameters and its computation.

    Attributes:
      query_key_head_size, value_head_size: width of a head's queries and keys, and of
        its values.
      local_global_ratio: every layer whose number, from 1 on, it divides sees
        `global_window_length` tokens to either side, the others `local_window_length`.
      logits: of the masked LM: "plain" (a token's own), "shifted" (the next token's, as
        it was trained; the first token's are 1 at `bos_token_id` and else 0) or
        "capped" (shifted, and 30 sigmoid(x / 7.5)).
    """

    def __init__(
        self,
        vocab_size: int = 51_200,
        hidden_size: int = 640,
        num_layers: int = 24,
        num_attention_heads: int = 10,
        intermediate_size: int = 1664,
        query_key_head_size: int = 64,
        value_head_size: int = 64,
        local_global_ratio: int = 4,
        global_window_length: int = 8192,
        local_window_length: int = 256,
        max_sequence_length: int = 16_384,
        layer_norm_eps: float = 1e-7,
        logits: str = "capped",
        embedding_dropout: float = 0.1,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        pad_token_id: int | None = 3,
        bos_token_id: int | None = 1,
        **kwargs,
    ):
        """Keeps the fields; transformers also calls it without any."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.query_key_head_size = query_key_head_size
        self.value_head_size = value_head_size
        self.local_global_ratio = local_global_ratio
        self.global_window_length = global_window_length
        self.local_window_length = local_window_length
        self.max_sequence_length = max_sequence_length
        kwargs["max_position_embeddings"] = max_sequence_length
        self.layer_norm_eps = layer_norm_eps
        self.logits = logits
        self.embedding_dropout = embedding_dropout
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        # The decoder is a parameter of its own, equal to the word table or not.
        kwargs["tie_word_embeddings"] = False
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, **kwargs)
