"""lsrjax: learned sparse retrieval across languages, trained in JAX."""

__version__ = "0.2.0"
