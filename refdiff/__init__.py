"""The Differential Transformer (DiffLlama) in pure NumPy: a reference implementation.

    import refdiff

    model = refdiff.DiffLlamaForCausalLM.from_pretrained("folder or hub repo")
    tokenizer = refdiff.Tokenizer.from_pretrained("folder or hub repo")
    ids = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"]
    print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))

`refdiff.layers` are the equations, `refdiff.convert` converts weights from one attention variant to another,
`refdiff.viz` draws, `refdiff.exercises` checks what a learner writes. Names are imported when they are first used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # nothing is imported here: `refdiff --help` starts at once
if TYPE_CHECKING:
    from typing import Any

    from refdiff import convert, exercises, layers, oracle, training, viz
    from refdiff.errors import CheckpointError
    from refdiff.generation.logits_process import LogitsProcessor, LogitsProcessorList
    from refdiff.generation.options import GenerationConfig
    from refdiff.generation.stopping import (
        EosTokenCriteria,
        MaxLengthCriteria,
        MaxTimeCriteria,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
    )
    from refdiff.generation.stream import BatchTextStreamer, TextIteratorStreamer, TextStreamer
    from refdiff.generation.tokenizer import Tokenizer
    from refdiff.generation.validation import set_seed
    from refdiff.generation.watermarking import SynthIDTextWatermarkingConfig, WatermarkingConfig
    from refdiff.model.cache import KVCache
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.model.heads import (
        DiffLlamaForCausalLM,
        DiffLlamaForQuestionAnswering,
        DiffLlamaForSequenceClassification,
        DiffLlamaForTokenClassification,
        DiffLlamaModel,
    )
    from refdiff.pipelines import pipeline

__all__ = [
    "BatchTextStreamer",
    "CheckpointError",
    "DiffLlamaConfig",
    "DiffLlamaForCausalLM",
    "DiffLlamaForQuestionAnswering",
    "DiffLlamaForSequenceClassification",
    "DiffLlamaForTokenClassification",
    "DiffLlamaModel",
    "EosTokenCriteria",
    "GenerationConfig",
    "KVCache",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "SynthIDTextWatermarkingConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "Tokenizer",
    "WatermarkingConfig",
    "convert",
    "exercises",
    "layers",
    "oracle",
    "pipeline",
    "set_seed",
    "training",
    "viz",
]

_HOMES = {
    "CheckpointError": "errors",
    "DiffLlamaConfig": "model.config",
    "GenerationConfig": "generation.options",
    "KVCache": "model.cache",
    "Tokenizer": "generation.tokenizer",
    **dict.fromkeys(("BatchTextStreamer", "TextIteratorStreamer", "TextStreamer"), "generation.stream"),
    **dict.fromkeys(("LogitsProcessor", "LogitsProcessorList"), "generation.logits_process"),
    **{name: "generation.stopping" for name in __all__ if name.endswith(("Criteria", "CriteriaList"))},
    **dict.fromkeys(("SynthIDTextWatermarkingConfig", "WatermarkingConfig"), "generation.watermarking"),
    "pipeline": "pipelines",
    "set_seed": "generation.validation",
    **{name: "model.heads" for name in __all__ if name.startswith(("DiffLlamaFor", "DiffLlamaModel"))},
}

_AUTO = {
    "AutoConfig": "DiffLlamaConfig",
    "AutoTokenizer": "Tokenizer",
    "AutoModel": "DiffLlamaModel",
    **{f"Auto{name.replace('DiffLlama', 'Model')}": name for name in __all__ if name.startswith("DiffLlamaFor")},
}
"""transformers' names that choose a class by the checkpoint. There is one here; it refuses others by `model_type`."""

_PROCESSORS = ("LogitsProcessor", "LogitsWarper", "LogitNormalization", "ExponentialDecayLengthPenalty")
"""The ends of names of transformers' processors."""


def __getattr__(name: str) -> "Any":
    import importlib

    name = _AUTO.get(name, name)
    if name in globals():
        return globals()[name]
    if name in ("convert", "exercises", "layers", "oracle", "training", "viz"):
        return importlib.import_module(f"refdiff.{name}")
    home = _HOMES.get(name)
    if home is None and name.endswith(_PROCESSORS):
        home = "generation.watermarking" if "Watermark" in name else "generation.logits_process"
    value = getattr(importlib.import_module(f"refdiff.{home}"), name, None) if home else None
    if value is None:
        from refdiff.refused import refuse_name

        refuse_name(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
