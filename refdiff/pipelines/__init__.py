"""text → result in one call: a model with its tokenizer, and the results of transformers' pipelines.

generate = refdiff.pipeline("text-generation", model="folder or hub repo")
generate("Plants create energy through a process known as", max_new_tokens=20)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from refdiff import hub
from refdiff.messages import did_you_mean
from refdiff.model import pretrained
from refdiff.refused import PIPELINE, instead

if TYPE_CHECKING:
    from refdiff.generation.tokenizer import Tokenizer
    from refdiff.pipelines.base import Pipeline

_CLASSES = {
    "text-generation": "TextGenerationPipeline",
    "text-classification": "TextClassificationPipeline",
    "token-classification": "TokenClassificationPipeline",
    "feature-extraction": "FeatureExtractionPipeline",
}
_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def pipeline(
    task: str | None = None,
    model: Any = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    **options: Any,
) -> Pipeline:
    """Return the pipeline of a task, a function from text to the result of the task.

    Args:
        task: text-generation, text-classification (sentiment-analysis), token-classification (ner)
            or feature-extraction.
        model: a folder, a hub repo or a model.
        tokenizer: a tokenizer, or its folder or repo (default: that of the folder or repo of the
            model).
        options: those of `from_pretrained`, such as `dtype` and `threads`, also as the dict
            `model_kwargs`, and defaults for those of the pipeline. `device` is that of the backend;
            -1 and "cpu" stand for NumPy's.

    Raises:
        ValueError: the task is unknown.
        TypeError: an option is unknown, the model is of another task, or a loaded model has no
            tokenizer or has options of `from_pretrained`.
    """
    name = _ALIASES.get(str(task), task or "")
    if name not in _CLASSES:
        known = [*_CLASSES, *_ALIASES]
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(known)}{did_you_mean(task, known)}")
    module = importlib.import_module(f"refdiff.pipelines.{name.replace('-', '_')}")
    cls: type[Pipeline] = getattr(module, _CLASSES[name])
    for ignored in ("trust_remote_code", "use_fast"):  # from_pretrained ignores the first; every tokenizer is fast
        options.pop(ignored, None)
    given = options.pop("model_kwargs", None)
    if not isinstance(given, dict | None):
        raise TypeError(f"model_kwargs: got {type(given).__name__}, expected a dict of options of from_pretrained")
    options = {name: value for name, value in options.items() if value is not None or not instead(name, PIPELINE)}
    loading = {**(given or {}), **{key: options.pop(key) for key in pretrained.ARGUMENTS if key in options}}
    if loading.get("device") is not None and str(loading["device"]) in ("-1", "cpu"):
        del loading["device"]
    source: Any = None
    if isinstance(model, str | os.PathLike):
        source, heads = model, importlib.import_module("refdiff.model.heads")
        model = getattr(heads, cls.architecture).from_pretrained(source, **loading)
    cls.check_model(model)
    if source is None and (
        unused := [key for key in loading if key not in hub.ARGUMENTS or not isinstance(tokenizer, str | os.PathLike)]
    ):
        raise TypeError(
            f"{', '.join(unused)}: got a value for a model that is loaded already, expected none; pass it to the "
            "model's from_pretrained"
        )
    return cls(model, _tokenizer(tokenizer, source, loading), **options)


def _tokenizer(tokenizer: Any, source: Any, loading: dict[str, Any]) -> Tokenizer:
    from refdiff.generation.tokenizer import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer is None and source is None:
        raise TypeError(
            "tokenizer: got None for a model that is loaded already, expected a Tokenizer, or the folder or repo of one"
        )
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        raise TypeError(
            f"tokenizer: got {type(tokenizer).__name__}, expected a Tokenizer, or the folder or repo of one"
        )
    hub_options = {key: value for key, value in loading.items() if key in hub.ARGUMENTS}
    if tokenizer is not None:
        hub_options.pop("revision", None)  # it names a commit of the model's repo
    return Tokenizer.from_pretrained(source if tokenizer is None else tokenizer, **hub_options)
