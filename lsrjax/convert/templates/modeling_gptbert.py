"""NorBERT4 (GPT-BERT with RoPE) for Hugging Face transformers, from 4.57 on.

    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    logits = model(**tokenizer(["en tekst"], return_tensors="pt")).logits

Computes what `ltg/norbert4-base` does (Charpentier and Samuel, 2024, arXiv:2410.24159),
in the type of the weights and with windows that count both ends, under the same names
of parameters. Norms have no parameters, every projection scales its input first, and
every layer mixes in the word embeddings and the first layer's values.

Axes: B texts, T tokens, H hidden, A heads of width d, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_gptbert import GptBertConfig

# Bases of RoPE; the config's rope_theta is not read.
_THETA, _LOCAL_THETA = 160_000.0, 10_000.0


class Norm(nn.Module):
    """A LayerNorm without parameters, over the last axis."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        """The normalized rows."""
        return functional.layer_norm(x, x.shape[-1:], eps=self.eps)


class Projection(nn.Module):
    """A linear layer that scales its input first."""

    def __init__(self, size: int, out: int, *, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, size))
        self.scale = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x):
        """[..., in] to [..., out]."""
        return functional.linear(x * (1 + self.scale), self.weight, self.bias)


class Projections(nn.Module):
    """Two linear layers of one scaled input."""

    def __init__(self, size: int, out: int):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(out, size) for _ in range(2))
        self.scale = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        """[..., in] to two of [..., out]."""
        x = x * (1 + self.scale)
        return [functional.linear(x, weight) for weight in self.weights]


class GptBertEmbedding(nn.Module):
    """Word embeddings, normalized and scaled."""

    def __init__(self, config: GptBertConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_scale = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = Norm(config.layer_norm_eps)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids):
        """[B, T] to [B, T, H]."""
        words = self.norm(self.word_embedding(input_ids))
        return self.dropout(words * (1 + self.word_scale))


class GptBertAttention(nn.Module):
    """Attention within a window."""

    def __init__(self, config: GptBertConfig, full: bool):
        super().__init__()
        self.heads, size = config.num_attention_heads, config.hidden_size
        self.width, values = config.query_key_head_size, config.value_head_size
        self.window = (
            config.global_window_length if full else config.local_window_length
        )
        self.theta = _THETA if full else _LOCAL_THETA
        self.rate = config.attention_dropout
        self.qk_proj = Projections(size, self.heads * self.width)
        self.v_proj = Projection(size, self.heads * values)
        self.out_proj = Projection(self.heads * values, size)
        self.q_scale = nn.Parameter(torch.zeros(self.heads, self.width))
        self.k_scale = nn.Parameter(torch.zeros(self.heads, self.width))
        self.lambdas = nn.Parameter(torch.zeros(1))
        self.norm = Norm(config.layer_norm_eps)

    def forward(self, queried, valued, first, mask):
        """Mixes the states of each text.

        Args:
          queried: what queries and keys are made of, [B, T, H].
          valued: what values are made of, [B, T, H].
          first: the first layer's values, or None in that layer.
          mask: [B, T], true at tokens.

        Returns:
          The mixed states [B, T, H], and this layer's own values.
        """
        own = self.v_proj(valued)
        value = own if first is None else torch.lerp(own, first, self.lambdas)
        query, key = (self._split(x) for x in self.qk_proj(queried))
        query = self._turned(self.norm(query) * (1 + self.q_scale[:, None]))
        key = self._turned(self.norm(key) * (1 + self.k_scale[:, None]))
        place = torch.arange(mask.shape[1], device=mask.device)
        near = (place[:, None] - place).abs() <= self.window
        seen = near & mask[:, None, None]
        scores = query @ key.transpose(2, 3) / self.width**0.5
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~seen, lowest).softmax(dim=-1)
        # A query without any key gets zeros.
        weights = functional.dropout(
            weights.masked_fill(~seen, 0), self.rate, self.training
        )
        mixed = (weights @ self._split(value)).transpose(1, 2).flatten(2)
        return self.out_proj(self.norm(mixed)), own

    def _split(self, x):
        """[B, T, A d] to [B, A, T, d]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _turned(self, x):
        """RoPE of [B, A, T, d]; the halves of a head are the pairs."""
        pair = torch.arange(0, self.width, 2, device=x.device).float() / self.width
        place = torch.arange(x.shape[2], device=x.device).float()
        angle = place[:, None] * self.theta**-pair
        cosine, sine = (
            torch.cat([part, part], dim=-1).to(x.dtype)
            for part in (angle.cos(), angle.sin())
        )
        left, right = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-right, left], dim=-1) * sine


class GptBertFeedForward(nn.Module):
    """A gated block."""

    def __init__(self, config: GptBertConfig):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.norm = Norm(config.layer_norm_eps)
        self.up_proj = Projections(size, inner)
        self.down_proj = Projection(inner, size)

    def forward(self, x):
        """[B, T, H] to [B, T, H]."""
        value, gate = self.up_proj(self.norm(x))
        return self.down_proj(
            self.norm(value * functional.gelu(gate, approximate="tanh"))
        )


class GptBertLayer(nn.Module):
    """Attention and a gated block over mixtures of the input and the embeddings."""

    def __init__(self, config: GptBertConfig, number: int):
        super().__init__()
        full = (number + 1) % config.local_global_ratio == 0
        self.attention = GptBertAttention(config, full)
        self.mlp = GptBertFeedForward(config)
        self.norm = Norm(config.layer_norm_eps)
        self.lambdas = nn.Parameter(torch.zeros(6))
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden, embedded, first, mask):
        """[B, T, H] to [B, T, H], and this layer's values."""
        sizes = functional.softplus(self.lambdas)

        def mixture(place):
            return torch.lerp(hidden, embedded, self.lambdas[place])

        mixed, values = self.attention(
            self.norm(mixture(1)), self.norm(mixture(0)), first, mask
        )
        mixed = self.dropout(mixed)
        fed = self.dropout(self.mlp(sizes[2] * mixture(3) + mixed))
        return sizes[4] * mixture(5) + mixed + fed, values


class GptBertLayers(nn.Module):
    """Holds the layers under the name that checkpoints give them."""

    def __init__(self, config: GptBertConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            GptBertLayer(config, i) for i in range(config.num_layers)
        )


class GptBertModel(PreTrainedModel):
    """The encoder; its last states are not normalized."""

    config_class = GptBertConfig
    base_model_prefix = ""
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: GptBertConfig):
        """Builds the model from its config."""
        super().__init__(config)
        self.embedding = GptBertEmbedding(config)
        self.encoder = GptBertLayers(config)
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: GptBertConfig) -> None:
        """Adds what a subclass has more."""

    def _init_weights(self, module):
        spread = self.config.initializer_range
        if isinstance(module, nn.Embedding | Projection):
            nn.init.normal_(module.weight, std=spread)
        elif isinstance(module, Projections):
            for weight in module.weights:
                nn.init.normal_(weight, std=spread)

    def get_input_embeddings(self):
        """The word table."""
        return self.embedding.word_embedding

    def set_input_embeddings(self, value):
        """Replaces the word table."""
        self.embedding.word_embedding = value

    def states(self, input_ids, attention_mask=None):
        """The last layer's states, [B, T, H]; `attention_mask` is 1 at tokens."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        hidden = embedded = self.embedding(input_ids)
        first = None
        for layer in self.encoder.layers:
            hidden, values = layer(hidden, embedded, first, mask)
            first = values if first is None else first
        return hidden

    def forward(self, input_ids, attention_mask=None, return_dict=None, **kwargs):
        """Encodes token ids [B, T]."""
        return BaseModelOutput(self.states(input_ids, attention_mask))


class GptBertHead(nn.Module):
    """The masked LM's layers up to the logits."""

    def __init__(self, config: GptBertConfig):
        super().__init__()
        size = config.hidden_size
        self.norm = Norm(config.layer_norm_eps)
        self.projection = Projection(size, size)
        self.emb2vocab = Projection(size, config.vocab_size, bias=True)

    def forward(self, hidden):
        """[B, T, H] to logits [B, T, V]."""
        states = self.projection(self.norm(hidden))
        states = functional.gelu(states, approximate="tanh")
        return self.emb2vocab(self.norm(states))


class GptBertForMaskedLM(GptBertModel):
    """The encoder and its masked-LM head."""

    _keys_to_ignore_on_load_unexpected = []

    def _add_head(self, config: GptBertConfig) -> None:
        self.classifier = GptBertHead(config)

    def forward(self, input_ids, attention_mask=None, return_dict=None, **kwargs):
        """Logits of token ids [B, T], of the kind that `config.logits` names."""
        logits = self.classifier(self.states(input_ids, attention_mask))
        kind = self.config.logits
        if kind not in ("plain", "shifted", "capped"):
            raise ValueError(f"logits in config.json is {kind!r}.")
        if kind == "capped":
            logits = 30 * torch.sigmoid(logits / 7.5)
        if kind != "plain":
            begin = torch.zeros_like(logits[:, :1])
            begin[..., self.config.bos_token_id] = 1.0
            logits = torch.cat([begin, logits[:, :-1]], dim=1)
        return MaskedLMOutput(logits=logits)
