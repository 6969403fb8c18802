"""`model_type` of a config.json -> the family; without JAX, for tokenizers."""

MODEL_TYPES = {
    "bert": "bert",
    "distilbert": "distilbert",
    "xlm-roberta": "xlm-roberta",
    # They differ from XLM-RoBERTa in vocabulary only.
    "roberta": "xlm-roberta",
    "camembert": "xlm-roberta",
    "modernbert": "modernbert",
    "gte": "gte",
    # The authors' own code for GTE.
    "new": "gte",
    "jina_embeddings_v3": "jina_embeddings_v3",
    "nomic_bert": "nomic_bert",
}
