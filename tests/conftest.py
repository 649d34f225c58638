"""Settings and checkpoints that tests share."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Where pytest -n makes processes for the cores, each computes on one thread, and so does what it starts. NumPy reads
# these when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import array_api_strict
import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.layers.places import Place, devices

# dev: seconds, ci: minutes, nightly: about an hour of two cores; chosen by REFDIFF_HYPOTHESIS, or by pytest's
# --hypothesis-profile. All but nightly draw the same examples each time; beside a failing one stands a
# @reproduce_failure line that runs it again. mutation is for tests that are to fail, not to explain; few is for runs
# that take several times as long, in WebAssembly or while coverage is measured.
settings.register_profile(
    "dev",
    max_examples=20,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("few", settings.get_profile("dev"), max_examples=6)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=200)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=3000, derandomize=False)
settings.register_profile(
    "mutation",
    settings.get_profile("dev"),
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)
settings.load_profile(os.environ.get("REFDIFF_HYPOTHESIS") or "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark cases of tests in the folders that take longest as slow, but one in six of each test.

    Of tests marked `subjects` all cases stay as they are.
    """
    longest = ("oracle/budget", "oracle/diagnosis", "oracle/divergence", "oracle/submission")
    folders = tuple(str(Path(__file__).parent / name) + os.sep for name in longest)
    seen: Counter[str] = Counter()
    unthinned = {"slow", "nightly", "subjects"}
    for item in items:
        if str(item.path).startswith(folders) and unthinned.isdisjoint(m.name for m in item.iter_markers()):
            test = item.nodeid.partition("[")[0]
            if seen[test] % 6:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


# A shell starts what it runs in the background with Ctrl-C ignored, and nohup ignores SIGHUP. The processes of tests
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(params=devices(), ids=str)
def away(request: pytest.FixtureRequest) -> Place:
    """Where arrays are not NumPy's: array-api-strict's second device, and CuPy's where one answers."""
    place: Place = request.param
    return place


@pytest.fixture(scope="session", autouse=True)
def _only_minus_one_is_a_length_to_find() -> Iterator[None]:
    """Have array-api-strict refuse a length of −2, like torch: it leaves that to NumPy, which takes it for −1."""
    reshape = array_api_strict.reshape

    def strict(x: Any, /, shape: tuple[int, ...], **options: Any) -> Any:
        if min(shape, default=0) < -1:
            raise ValueError(f"reshape: no length is {min(shape)}")
        return reshape(x, shape, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array_api_strict, "reshape", strict)
        yield


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share what tests/cuda/emulation.py compiles among the processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFDIFF_EMULATED", str(folder / "compiled"))
        yield


CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[bot] {% endif %}"
)


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look again and again, and fail where it takes too long."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def write_tokenizer(folder: Path, *, bos: bool = True) -> int:
    """Write a byte-level tokenizer with <s> 0, </s> 1, <pad> 2, then the 256 bytes; returns the number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return len(special) + len(alphabet)


@pytest.fixture
def outside() -> dict[str, str]:
    """The environment without what pytest and coverage put there, for a process that runs pytest itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DiffLlamaForCausalLM of random weights (2 layers, float32) and a byte-level tokenizer."""
    import refdiff

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    config = refdiff.DiffLlamaConfig(
        vocab_size=write_tokenizer(folder),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    refdiff.DiffLlamaForCausalLM.from_config(config, seed=7).save_pretrained(folder)
    return folder
