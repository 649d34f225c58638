"""The loop: it learns, goes on bit for bit, adds up parts, says where numbers end, and counts bits as they are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import refdiff
from refdiff.arrays import to_numpy
from refdiff.backends import overlay
from refdiff.backends.numpy.thread_pool import default_threads
from refdiff.errors import CheckpointError
from refdiff.model.weights import flatten
from refdiff.training import checkpoint
from refdiff.training.evaluate import TrainingError
from refdiff.training.settings import OLD_NAMES
from refdiff.training.train import Trainer
from tests.layers.places import Place
from tests.model.models import VARIANT_NAMES
from tests.model.variants import LAYERS

Start = Callable[..., Trainer]
EACH = pytest.mark.parametrize(("variant", "optimizer"), [*zip(VARIANT_NAMES, cycle(("adamw", "muon")))])


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: a.copy() for name, a in flatten(trainer.model.params).items()}


@EACH
def test_it_learns(start: Start, variant: str, optimizer: str) -> None:
    records: list[dict[str, Any]] = []
    trainer = start(variant=variant, optimizer=optimizer, max_steps=40, learning_rate=2e-2, save_every=0)
    first = trainer.evaluate()["validation"]
    folder = trainer.run(records.append)
    assert folder.name == "step-000040"
    assert records[-1]["validation"] < first - 1.5
    assert [record["step"] for record in records] == list(range(1, 41))
    assert (len(records[0].get("lambdas", [])) == 2) == ("diff_lambda" in LAYERS[variant])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resumed_it_has_the_weights_of_a_run_never_stopped(start: Start, optimizer: str, dtype: str) -> None:
    class StopError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise StopError

    whole = start("whole", optimizer=optimizer, dtype=dtype)
    whole.run()
    cut = start("cut", optimizer=optimizer, dtype=dtype)
    with pytest.raises(StopError):
        cut.run(stop)
    again = Trainer.resume(cut.out)
    assert again.step == 4  # the last checkpoint
    again.run()
    for name, a in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], a)
    files = ("model.safetensors", "optimizer.safetensors", "config.json", "training.json")
    for file in files:
        assert (cut.out / "step-000006" / file).read_bytes() == (whole.out / "step-000006" / file).read_bytes()
    steps = [json.loads(line)["step"] for line in (cut.out / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_accumulated_microbatches_give_the_step_of_the_whole_batch(start: Start) -> None:
    whole = start("whole", dtype="float64", max_steps=3)
    parts = start("parts", dtype="float64", max_steps=3, accumulate=2)
    whole.run()
    parts.run()
    for name, a in weights(whole).items():
        np.testing.assert_allclose(weights(parts)[name], a, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("part", "where"),
    [
        (("embed_tokens", "weight"), "the embeddings are not finite"),
        (("layers", 0, "mlp", "up_proj", "weight"), "the result of layer 0 is not finite"),
        (("layers", 1, "self_attn", "lambda_q1"), "the result of layer 1 is not finite"),
        (("norm", "weight"), "the result of the last norm is not finite"),
    ],
)
def test_a_loss_that_is_no_number_stops_and_is_located(start: Start, part: tuple[Any, ...], where: str) -> None:
    trainer = start()

    def poison(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            at = trainer.model.params["model"]
            for key in part:
                at = at[key]
            at[...] = np.nan

    with pytest.raises(TrainingError, match=rf"step 4: the loss is nan, and {where}; resume step-000002 with"):
        trainer.run(poison)
    folder, about = checkpoint.latest(trainer.out)
    assert about["step"] == 2
    assert all(
        np.isfinite(a).all() for a in flatten(refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params).values()
    )


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize("often", ["evaluate_every", "sample_every"])
def test_weights_that_a_step_spoils_are_located_before_anything_is_shown(
    start: Start, often: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(variant=variant, **{often: 1})

    def spoil(*args: Any, **options: Any) -> None:
        trainer.model.params["model"]["layers"][1]["mlp"]["up_proj"]["weight"][...] = np.nan

    monkeypatch.setattr(trainer._optimizer, "step", spoil)
    with pytest.raises(TrainingError, match=r"step 1: the validation loss is nan, and the result of layer 1 is"):
        trainer.run()
    assert not (trainer.out / "log.jsonl").exists()


def test_a_step_too_long_is_seen_at_lambda(start: Start) -> None:
    with pytest.raises(TrainingError, match=r"step 1: λ of layer 0 is (nan|-?inf); resume step-000000 with"):
        start(learning_rate=1e30, warmup_steps=0).run()


@pytest.mark.parametrize(
    ("layer", "op", "first"),
    [(0, "rope_vjp", "self_attn.q_proj"), (1, "rope_vjp", "self_attn.q_proj"), (1, "swiglu_vjp", "mlp.down_proj")],
)
def test_a_gradient_that_is_no_number_stops_and_is_located(start: Start, layer: int, op: str, first: str) -> None:
    """Where it came about: what it spoils, which is all below and by clipping all above, is not named."""
    trainer, calls = start(), []
    plain = getattr(trainer.model.ops, op)

    def spoiled(g: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        a_layer = 2 if op == "rope_vjp" else 1  # queries and keys
        return plain(g * np.float32(np.nan) if (len(calls) - 1) // a_layer == 1 - layer else g, *args, **options)

    trainer.model.ops = overlay(trainer.model.ops, lambda name, f: spoiled if name == op else f)
    what = rf"and model\.layers\.{layer}\.{first}\.weight is the first of them in the backward pass"
    with pytest.raises(TrainingError, match=rf"step 1: the gradient is not finite, {what}; start again with"):
        trainer.run()


def test_weights_that_are_no_numbers_are_not_saved(start: Start) -> None:
    trainer = start()
    trainer.model.params["model"]["norm"]["weight"][0] = np.inf
    with pytest.raises(TrainingError, match=r"step 0: model\.norm\.weight is not finite, so no checkpoint"):
        trainer.save()


def test_a_checkpoint_that_no_step_can_be_made_from_is_named(start: Start) -> None:
    """Its weights are finite, its next loss or gradient is not: the one before it is resumed, at a lower rate."""
    trainer = start(variant="plain", max_steps=3, learning_rate=1e30, warmup_steps=0, save_every=1)
    why = "no step can be made from step-000001: delete it; resume step-000000 with --resume and a lower learning rate"
    with pytest.raises(TrainingError, match=rf"^step 2: the \S+ is .*; {why}"):
        trainer.run()
    shutil.rmtree(trainer.out / "step-000001")
    assert Trainer.resume(trainer.out, changes={"learning_rate": 1e-3}).run().name == "step-000003"


def test_resume_with_changed_settings_records_them(start: Start) -> None:
    trainer = start(max_steps=4)
    trainer.run()
    Trainer.resume(trainer.out, changes={"max_steps": 6, "learning_rate": 1e-2, "grad_clip": 0.5})
    again = Trainer.resume(trainer.out)  # killed before its first checkpoint
    assert (again.settings.max_steps, again.settings.grad_clip) == (6, 0.5)
    folder = again.run()
    about = json.loads((folder / "training.json").read_text())
    assert about["changes"] == [{"step": 4, "max_steps": [4, 6], "grad_clip": [1.0, 0.5]}]
    assert about["settings"]["max_steps"] == about["step"] == 6
    with pytest.raises(ValueError, match="max_steps: got 5, expected 6 or more, the steps already made"):
        Trainer.resume(trainer.out, changes={"max_steps": 5})
    with pytest.raises(ValueError, match="batch_size, seed may not change"):
        Trainer.resume(trainer.out, changes={"seed": 1, "batch_size": 8, "learning_rate": 1.0})
    assert Trainer.resume(trainer.out).settings == again.settings


def test_a_run_of_version_0_1_resumes(start: Start) -> None:
    trainer = start(max_steps=4)
    path = trainer.save() / "training.json"
    old = {name: old for old, name in OLD_NAMES.items()}
    about = json.loads(path.read_text())
    about["settings"] = {old.get(name, name): value for name, value in about["settings"].items()}
    path.write_text(json.dumps({**about, "changes": [{"step": 0, "rate": [0.1, 0.01]}]}))
    again = Trainer.resume(trainer.out, changes={"steps": 6})
    assert again.settings == replace(trainer.settings, max_steps=6)
    assert again.changes == [{"step": 0, "learning_rate": [0.1, 0.01]}, {"step": 0, "max_steps": [4, 6]}]


def test_killed_beside_a_checkpoint_no_step_is_left_out_of_the_log(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of both a step writes first, the second may not come; the record first, for the log can be cut."""

    class KilledError(BaseException):
        pass

    out = start(max_steps=4).save().parent
    for part in ("save", "log"):
        trainer, plain = Trainer.resume(out), getattr(checkpoint, part)

        def killed(*args: Any, trainer: Trainer = trainer, plain: Any = plain) -> Any:
            if trainer.step == 2:
                raise KilledError
            return plain(*args)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, part, killed)
            with pytest.raises(KilledError):
                trainer.run()
    Trainer.resume(out).run()
    records = checkpoint.read_log(out)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record.get("checkpoint") for record in records] == [None, "step-000002", None, "step-000004"]


def test_resume_keeps_the_number_of_threads(start: Start) -> None:
    trainer = start(max_steps=1)
    trainer.threads = 1
    trainer.run()
    for given, threads in ((None, 1), (2, 2), (0, 0)):
        again = Trainer.resume(trainer.out, threads=given)
        assert again.threads == threads
        workers = again.model.backend.kernels.threads
        assert workers == (threads or default_threads())


Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda about: about["settings"].update(speed=3),
            "not what this version writes: .*'speed'.*; delete .*step-000004",
        ),
        (
            lambda about: about["settings"].update(learning_rate="high"),
            "learning_rate: got 'high', expected type float; delete",
        ),
        (lambda about: about.update(step="4"), "step is '4'; delete .* to resume the one before"),
        (lambda about: about.pop("step"), "step is None; delete"),
        (lambda about: about.pop("settings"), "not what this version writes: 'settings'"),
        (lambda about: about.update(changes=[3]), "not what this version writes: 'int' object is not iterable"),
        (lambda about: about.update(threads="all"), "not what this version writes: invalid literal for int"),
    ],
)
def test_a_damaged_training_file_is_named(start: Start, damage: Damage, message: str) -> None:
    trainer = start(max_steps=4)
    path = trainer.run() / "training.json"
    about = json.loads(path.read_text())
    damage(about)
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=rf"step-000004.training\.json: .*{message}"):
        Trainer.resume(trainer.out)
    shutil.rmtree(path.parent)
    assert Trainer.resume(trainer.out).step == 2


def test_a_checkpoint_without_its_config_is_named(start: Start) -> None:
    trainer = start(max_steps=4)
    (trainer.run() / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; delete .*step-000004 to resume the one"):
        Trainer.resume(trainer.out)


def test_a_damaged_optimizer_file_is_named(start: Start) -> None:
    trainer = start(max_steps=4)
    folder = trainer.run()
    state = checkpoint.optimizer_state(folder)
    name, wrong = "mean.model.norm.weight", "not what this version writes: .*; delete"
    save_file({**state, name: np.ones(7)}, folder / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=rf"optimizer\.safetensors: {wrong}"):
        Trainer.resume(trainer.out)
    save_file({n: a for n, a in state.items() if n != name}, folder / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=rf"optimizer\.safetensors: {wrong}"):
        Trainer.resume(trainer.out)
    (folder / "optimizer.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: cannot be read"):
        Trainer.resume(trainer.out)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda about: about.pop("vocab_size"), "'vocab_size'"),
        (lambda about: about.update(vocab_size=2**40), r"vocab_size: got \d+, expected a whole number from 257"),
        (lambda about: about.update(dtype="|O"), r"dtype: got '\|O', expected '<u2'"),  # would make pointers of ids
        (lambda about: about.update(dtype="<f2"), "dtype: got '<f2', expected '<u2'"),
        (lambda about: about.update(separator=270), "separator: got 270, expected a whole number from 0 to 269"),
        (lambda about: about.update(num_tokens={"train": "many"}), r"num_tokens\.train: got 'many', expected a whole"),
        (lambda about: about["num_tokens"].update(train=math.inf), r"num_tokens\.train: got inf, expected"),
        (lambda about: about.update(num_bytes=3), "'int' object is not subscriptable"),
        (lambda about: about["num_bytes"].update(validation=0), r"num_bytes\.validation: got 0, expected"),
    ],
)
def test_a_damaged_corpus_is_named(start: Start, damage: Damage, message: str) -> None:
    trainer = start()
    trainer.save()
    path, whole = trainer.out / "corpus" / "corpus.json", (trainer.out / "corpus" / "corpus.json").read_text()
    about = json.loads(whole)
    damage(about)
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=rf"corpus\.json: not what this version writes: {message}"):
        Trainer.resume(trainer.out)
    path.write_text(whole)
    with (trainer.out / "corpus" / "train.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        CheckpointError, match=r"train\.bin: has 100 bytes, but corpus\.json says [\d,]+: it is not whole"
    ):
        Trainer.resume(trainer.out)


def test_an_id_outside_of_the_vocabulary_is_located(start: Start) -> None:
    trainer = start()
    trainer.corpus.tokens["train"] = np.full_like(trainer.corpus.tokens["train"], 270)
    with pytest.raises(CheckpointError, match=r"corpus.train\.bin: got token id 270, expected 0 to 269; train from"):
        trainer.run()


# ---- evaluation


def test_bits_per_byte_of_a_model_that_knows_nothing(start: Start) -> None:
    """All logits equal: each token costs log₂ V bits, whatever it is."""
    trainer = start()
    trainer.model.params["model"]["embed_tokens"]["weight"][...] = 0
    found = trainer.evaluate()
    tokens = len(trainer.corpus.tokens["validation"]) - 1
    assert found["validation"] == pytest.approx(math.log(270), rel=1e-6)
    expected = tokens * math.log2(270) / trainer.corpus.num_bytes["validation"]
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


# ---- on a device: array-api-strict's second, which converts nothing unasked, or CuPy's


@EACH
def test_training_on_a_device_equals_the_cpu_and_resumes(
    away: Place, start: Start, variant: str, optimizer: str
) -> None:
    options: dict[str, Any] = {"variant": variant, "optimizer": optimizer, "dtype": "float64"}
    options |= {"max_steps": 3, "grad_clip": 0.1}
    here, there = start("here", **options), start("there", **options, **away.choice)
    records: list[dict[str, Any]] = []
    here.run()
    there.run(records.append)
    assert [record["step"] for record in records] == [1, 2, 3]
    resumed = Trainer.resume(there.out, **away.choice)
    for trainer in (there, resumed):
        for name, x in flatten(trainer.model.params).items():
            assert away.holds(x)
            np.testing.assert_allclose(
                to_numpy(x), flatten(here.model.params)[name], rtol=1e-9, atol=1e-12, err_msg=name
            )
    assert resumed.step == 3
    for name, x in resumed._optimizer.state().items():
        np.testing.assert_array_equal(to_numpy(x), to_numpy(there._optimizer.state()[name]), err_msg=name)
