"""JAX on the CPU with strict ranks, a shared compilation cache, and fixtures of models and text."""

from __future__ import annotations

import gc
import os
import random
import shutil
from pathlib import Path

from tests.support.xla_options import QUICKEST_TO_COMPILE, as_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test uses the user's token cache. The tests of the cache use their own folder.
os.environ["LCJAX_TOKEN_CACHE_GB"] = "0"
# On a busy machine, torch's threads would otherwise spend most of the time in active waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Compiling for the CPU takes a tenth of the time with these. `make test-all` sets XLA_FLAGS to
# nothing, so that every test also runs on the code that users run.
os.environ.setdefault("XLA_FLAGS", as_flags(QUICKEST_TO_COMPILE))

import jax
import pytest

from lcjax.plan.compiling import compile as compiling
from lcjax.weights.demo import demo_model
from lcjax_scripts.verify.parity.interpreter.mosaic import OLDEST_JAX, THREADS
from tests.support.compiling import KERNELS, compile_optimized, compile_with_known_kernels
from tests.support.longest_first import place_of
from tests.support.tiny_llama import save_tiny_llama

if jax.__version_info__ >= OLDEST_JAX:
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)

# Programs for GPUs are always optimized, as for users.
jax.stages.Lowered.compile = compile_optimized
compiling.compile_lowered = compile_with_known_kernels
jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = "the old river carried seven small boats past a quiet town while nobody there ever learned to swim".split()

LARGEST_CACHES = {"programs": 2 * 2**30, "kernels": 2**26}  # bytes


def pytest_configure(config):
    """Shares compiled programs between tests, workers, subprocesses, and runs of the test suite.

    Nine tenths of the time of most tests is the compiler's. JAX's key of a program covers its code,
    the options and the version of the compiler, so a change of the code compiles again. Of programs
    for GPUs, only kernels are stored, by their code. `make clean` and pytest's --cache-clear remove
    both folders.
    """
    # Tests trace programs of many small objects that live long. With Python's thresholds, the
    # search for unreachable ones takes a tenth of the time of all tests.
    gc.set_threshold(50_000, 10, 10)
    if KERNELS not in os.environ and hasattr(config, "cache"):
        os.environ[KERNELS] = str(_cache_folder(config, "kernels"))
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not hasattr(config, "cache"):
        return
    folder = _cache_folder(config, "programs")
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


def _cache_folder(config, name: str) -> Path:
    """A folder of pytest's cache, which is emptied before the workers use it if it is too large."""
    folder = Path(config.cache.mkdir(name))
    is_first = not hasattr(config, "workerinput")
    if is_first and sum(path.stat().st_size for path in folder.iterdir()) > LARGEST_CACHES[name]:
        shutil.rmtree(folder)
        folder.mkdir()
    return folder


def pytest_collection_modifyitems(items):
    """Starts with the longest files, so that no worker is left alone with one of them at the end.

    pytest-xdist keeps this order with --no-loadscope-reorder. Otherwise it begins with the files
    that have the most tests.
    """
    items.sort(key=lambda item: place_of(item.path))


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Uses an empty cache, without the results of other tests and of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct.

    It is found without importing its package, which needs llama.cpp.
    """
    return demo_model()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 200))) + ".\n" for _ in range(24)]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, texts) -> Path:
    """A Hugging Face directory with a random float32 Llama: 2 layers, hidden size 32, GQA."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny_llama(directory, texts)
    return directory


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, texts) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for number, text in enumerate(texts):
        (directory / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return directory
