"""`model_type` of a config.json -> the family; without JAX, for tokenizers."""

MODEL_TYPES = {
    "bert": "bert",
    "distilbert": "distilbert",
    "xlm-roberta": "xlm-roberta",
    # They differ from XLM-RoBERTa in vocabulary only.
    "roberta": "xlm-roberta",
    "camembert": "xlm-roberta",
    "deberta-v2": "deberta-v2",
    "xlm-roberta-xl": "xlm-roberta-xl",
    "xmod": "xmod",
    "modernbert": "modernbert",
    "qwen3": "qwen3",
    "llama": "llama",
    "mistral": "mistral",
    "eurobert": "eurobert",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "gte": "gte",
    # The authors' own code for GTE.
    "new": "gte",
    "jina_embeddings_v3": "jina_embeddings_v3",
    "nomic_bert": "nomic_bert",
    "electra": "electra",
    "ernie": "ernie",
    "mpnet": "mpnet",
}
# Families that see distances between tokens alone, so that padding on the left, where
# decoders' tokenizers have it, moves nothing.
RELATIVE = frozenset(
    ("qwen3", "llama", "mistral", "eurobert", "gemma", "gemma2", "gemma3_text")
)
