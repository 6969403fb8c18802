"""lsrjax: learned sparse retrieval across languages, trained in JAX."""

__version__ = "0.1.0"
