"""The base of all five model classes: loading and saving weights, and the call of the base model."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, ParamSpec, Self, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from refdiff import hub
from refdiff.arrays import Array, backend, check_device, from_numpy, namespace, to_numpy
from refdiff.backends import backend_for, device_placement, keep_half
from refdiff.errors import CheckpointError
from refdiff.files import read_optional_json
from refdiff.messages import did_you_mean, warn
from refdiff.model import inputs
from refdiff.model.cache import KVCache
from refdiff.model.commit import read_consistently
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import DTYPES
from refdiff.model.diffllama import Context, diffllama
from refdiff.model.outputs import ModelOutput
from refdiff.model.recorder import Recorder
from refdiff.model.weights import check_parameters, flatten, initialize, load, nest, resolve_dtype, save
from refdiff.model.weights.folder import Origin, checksum, identities

P = ParamSpec("P")
R = TypeVar("R")

ARGUMENTS = """\
Args:
    input_ids: (B, T) integers, or in their place `inputs_embeds` (B, T, D).
    attention_mask: (B, S) of 1 and 0, S counting the tokens in the cache; or (B, 1 or H, T, S), boolean "may see" or
        added to the scores. Without it every token sees itself and all before it.
    position_ids: (B, T); without them positions count on from the cache.
    cache: the `out.cache` of an earlier call, or a new `KVCache`; `use_cache` says whether to make one
        (config.use_cache).
    output_attentions: add `attentions`, `differential_attentions` and `lambdas`; the layers then run one by one:
        slower, logits equal up to rounding error.
    output_hidden_states: add `hidden_states`, in the same way."""
RAISES = """\
Raises:
    ValueError: an input of another kind or shape; the message has what was given and what is taken.
    IndexError: a token id outside the vocabulary."""
"""What every class takes when it is called, and raises, for the docstrings of all of them."""


class ModelInputs(TypedDict, total=False):
    """The keyword arguments that every class takes when it is called, beside `input_ids` and `attention_mask`."""

    position_ids: Any
    cache: KVCache | None
    inputs_embeds: Any
    use_cache: bool | None
    output_attentions: bool
    output_hidden_states: bool


def model_call(call: Callable[P, R]) -> Callable[P, R]:
    """Run a call in the backend's scope of one pass."""

    @functools.wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0]
        given: Any = args[1] if len(args) > 1 else kwargs.get("input_ids")
        while isinstance(given, list | tuple) and len(given) == 1:
            given = given[0]
        one = given is not None and not isinstance(given, list | tuple) and np.size(given) == 1
        weight = model.base_params["layers"][0]["mlp"]["gate_proj"]["weight"] if one else None
        with model.backend.inference_scope(weight):
            return call(*args, **kwargs)

    return called


def document_inputs(call: Callable[P, R]) -> Callable[P, R]:
    """Add what every class takes to the docstring of a `__call__`, before its own arguments, and what it raises."""
    text, _, own = inspect.cleandoc(call.__doc__ or "").partition("\n\nArgs:\n")
    call.__doc__ = f"{text}\n\n{ARGUMENTS}\n{own}".rstrip() + f"\n\n{RAISES}\n"
    return call


class PreTrainedModel:
    """A DiffLlama with one head; use one of its subclasses.

    `DiffLlamaForCausalLM(config)` has newly drawn weights, the same as `from_config(config)`; `from_pretrained` loads.

    Attributes:
        config: the model's `DiffLlamaConfig`.
        params: the nested weight dict under Hugging Face's names.
        dtype: the precision of the weights, "float32", "float64", "float16" or "bfloat16". The 16-bit ones are
            expanded to float32 in memory, unless the model was loaded with weights="stored".
        generation_config: the content of generation_config.json, or {}.
        source: the folder that the model was loaded from, or None.
        ops: the namespace of layer functions that the model calls; put `refdiff.backends.overlay(model.ops, wrap)`
            here to trace, time or replace them.
    """

    base_prefix: ClassVar[str | None] = "model"
    head_inputs: ClassVar[tuple[str, ...]] = ()  # what a call takes beside the arguments of every class

    def __init__(
        self,
        config: DiffLlamaConfig,
        params: dict[str, Any] | None = None,
        *,
        dtype: Any = "float32",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        threads: int | None = None,
        generation_config: dict[str, Any] | None = None,
    ) -> None:
        _check_config(config, type(self).__name__)
        dtype = _dtype_name(dtype)
        if params is None:
            params = initialize(config, type(self).__name__, dtype=dtype)
        arrays = check_parameters(flatten(params), config, type(self).__name__)
        self.config = config
        self.dtype = dtype
        self.xp = _backend(backend, device)
        self.device = device
        with device_placement(self.xp, device, sum(getattr(a, "nbytes", 0) for a in arrays.values())) as put:
            self.params = nest({name: put(array) for name, array in arrays.items()})
        matrices = self.base_params["layers"][0]["self_attn"]["o_proj"]["weight"].dtype
        self.backend = backend_for(self.xp, kernels, threads, getattr(matrices, "name", "float32"))
        self.ops = self.backend.ops
        self.generation_config = generation_config or {}
        self.source: str | None = None
        self.warned_of_length = False
        self._init_options = {"kernels": kernels, "threads": threads}
        self._origin: Origin | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        dtype: Any = "auto",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        weights: str = "auto",
        threads: int | None = None,
        mmap: bool = True,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        torch_dtype: Any = None,
        device_map: Any = None,
        trust_remote_code: Any = None,
    ) -> Self:
        """Load a checkpoint from a folder or a hub repo.

        Args:
            path_or_repo: a folder with config.json and safetensors, a repo id such as
                "kajuma/DiffLlama-0.3B-handcut", or "bundled", the small model that the package brings.
            dtype: "auto" or None = as saved; "float32", "float64", "float16", "bfloat16", or NumPy's dtype of it.
            backend: "numpy", "cupy", or any array-API namespace module; JAX's arrays need use_cache=False.
            device: where that backend puts its arrays; None is its default. NumPy has "cpu" alone.
            kernels: "fast" = the backend's kernels, "reference" = the equations as written.
            weights: "expanded" = 16-bit weights become float32 when they are loaded; "stored" = their matrices stay as
                they are in the file, for half the memory, and the fast kernels expand what they use, or on a CUDA
                device multiply them so; "auto" = "stored" on a CUDA device (by CuPy 14 or newer), else "expanded".
            threads: how many the fast kernels may use on a CPU; None is all cores, or fewer where
                `OPENBLAS_NUM_THREADS` or `OMP_NUM_THREADS` says so.
            mmap: memory-map the weights, which loads at once and shares memory with other processes. False reads them
                whole, for files that may be overwritten in place while the model is in use: reading a page of a mapped
                file that is gone ends the process (SIGBUS). Replacing a file by renaming another is safe.
            revision: branch, tag or commit of a repo.
            cache_dir: where downloads are kept instead of the usual cache.
            local_files_only: use what has been downloaded before, without network.
            torch_dtype: transformers' older name of `dtype`.
            device_map: transformers' name for what is not done here; None alone is accepted.
            trust_remote_code: ignored; no code of a checkpoint is ever run.

        Raises:
            CheckpointError: something is missing or broken; the message names file, tensor and what would help.
        """
        if device_map is not None:
            raise ValueError(
                f"device_map: got {device_map!r}, expected None; one device holds the model, device= of a backend"
            )
        if dtype is None:
            dtype = "auto"
        if torch_dtype is not None and dtype != "auto":
            raise ValueError("dtype, torch_dtype: got both, expected one of them")
        dtype = dtype if torch_dtype is None else torch_dtype
        xp, dtype = _backend(backend, device), _dtype_name(dtype)  # before anything is downloaded
        stored = keep_half(weights, xp, kernels)
        folder = hub.snapshot(
            path_or_repo,
            files=hub.CONFIG + hub.WEIGHTS,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )

        options = {"stored": stored, "mapped": mmap}

        def read() -> tuple[DiffLlamaConfig, dict[str, Any], dict[str, Any], str, dict[str, Any]]:
            config = DiffLlamaConfig.from_pretrained(folder)
            files = identities(folder)
            params = load(folder, config, cls.__name__, dtype=dtype, **options)
            resolved = resolve_dtype(folder, config, dtype)
            return config, files, params, resolved, read_optional_json(folder / "generation_config.json")

        config, files, params, resolved, generation_config = read_consistently(folder, read)
        model = cls(
            config,
            params,
            dtype=resolved,
            backend=xp,
            device=device,
            kernels=kernels,
            threads=threads,
            generation_config=generation_config,
        )
        model.source = str(folder)
        model._origin = Origin(folder.absolute(), files, options, flatten(model.params))
        return model

    @classmethod
    def from_config(
        cls,
        config: DiffLlamaConfig,
        seed: int = 0,
        *,
        dtype: Any = "float32",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        threads: int | None = None,
    ) -> Self:
        """Create a model with random weights of transformers' distribution, by `seed`."""
        _check_config(config, cls.__name__)
        dtype = _dtype_name(dtype)
        params = initialize(config, cls.__name__, seed=seed, dtype=dtype)
        return cls(config, params, dtype=dtype, backend=backend, device=device, kernels=kernels, threads=threads)

    def save_pretrained(
        self, directory: str | os.PathLike[str], max_shard_size: int | str = "5GB", *, dtype: Any = None
    ) -> None:
        """Write the configs and safetensors that transformers and refdiff load.

        An interrupted save leaves the old checkpoint or the new one.

        Args:
            directory: made if it is not there.
            max_shard_size: bytes, or a number with KB, MB, GB or TB; larger models are split into shards.
            dtype: the stored precision; None keeps the model's.

        Raises:
            OSError: the disk is full or not writable; the message says which checkpoint counts, the old or the new.
        """
        save(
            directory, self.config, self.params, type(self).__name__,
            dtype=self.dtype if dtype is None else _dtype_name(dtype), max_shard_size=max_shard_size,
            generation_config=self.generation_config,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the arguments of `restore`: the path while the weights are those of its files, else the weights.

        So each worker maps the file itself, and a model of gigabytes is sent in a few thousand bytes.

        Raises:
            TypeError: `ops` were replaced by functions of this process.
        """
        if not self.backend.is_own(self.ops):
            raise TypeError(
                "this model has ops of its own, and they do not pickle: send it without, and put them into its `ops` "
                "where it arrives"
            )
        choices = {
            "dtype": self.dtype,
            "device": self.device,
            "kernels": self._init_options["kernels"],
            "threads": self._init_options["threads"],
            "generation_config": self.generation_config,
        }
        origin, options = self._origin, None
        if origin is not None and origin.has(self.params):
            options = origin.options
            weights: Any = checksum(self.params)
        else:
            weights = nest({name: to_numpy(a) for name, a in flatten(self.params).items()})
        source = self.source if origin is None else str(origin.folder)
        return restore, (type(self), self.config, source, options, weights, self.xp.__name__, choices)

    def __copy__(self) -> Self:
        """Return a shallow copy, which also has a replaced `ops`."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __repr__(self) -> str:
        c = self.config
        return (
            f"{type(self).__name__}({self.num_parameters():,} parameters, {c.num_hidden_layers} layers, "
            f"wiring={c.wiring!r}, dtype={self.dtype!r})"
        )

    def num_parameters(self) -> int:
        """Count the numbers in the weights; tied ones count once."""
        return sum(int(a.size) for a in flatten(self.params).values())

    @property
    def base_params(self) -> dict[str, Any]:
        """The weights of the base model, without those of the head."""
        params: dict[str, Any] = self.params if self.base_prefix is None else self.params[self.base_prefix]
        return params

    def _array(self, x: NDArray[Any]) -> Array:
        return from_numpy(x, self.xp, self.device)

    def _forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        given: ModelInputs,
        last: int = 0,
    ) -> ModelOutput:
        """Run the base model and return the hidden states of the `last` tokens (0 = all) and the other results.

        Raises:
            TypeError: an argument that no model takes.
        """
        for name in given.keys() - ModelInputs.__annotations__:
            known = ["input_ids", "attention_mask", *self.head_inputs, *ModelInputs.__annotations__]
            hint = did_you_mean(name, known, show=str, cutoff=0.8)
            raise TypeError(
                f"{type(self).__name__}: got an unexpected argument {name!r}, expected any of {', '.join(known)}{hint}"
            )
        options: dict[str, Any] = {**given}
        attentions = options.pop("output_attentions", False)
        hidden_states = options.pop("output_hidden_states", False)
        hidden, context = self._embed(input_ids, attention_mask, **options)
        if not (attentions or hidden_states):
            return ModelOutput(last_hidden_state=self._decode(hidden, context, last), cache=context.cache)
        recorder = Recorder(self.base_params, attentions=attentions, hidden_states=hidden_states)
        context.ops = recorder.wrap(context.ops)
        out = ModelOutput(last_hidden_state=self._decode(hidden, context, last), cache=context.cache)
        recorder.add_to(out, self.config.wiring)
        return out

    def _decode(self, hidden: Array, context: Context, last: int = 0) -> Array:
        """Run the decoder, and return the hidden states of the `last` tokens (0 = all)."""
        whole = self.backend.select("diffllama", context.ops)
        result: Any = NotImplemented if whole is None else whole(self.base_params, hidden, context, last or None)
        return diffllama(self.base_params, hidden, context)[:, -last:, :] if result is NotImplemented else result

    def _embed(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
    ) -> tuple[Array, Context]:
        """Convert the user's inputs to embeddings and the context of the layers."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: got both or none, expected one of them")
        p, config = self.base_params, self.config
        if inputs_embeds is None:
            ids = inputs.token_ids(input_ids)
            inputs.check_known(ids, config.vocab_size)
            hidden = self.ops.embedding(self._array(ids), **p["embed_tokens"])
            hidden = self.xp.astype(hidden, p["norm"]["weight"].dtype, copy=False)  # the table may be kept in 16 bits
        else:
            hidden = self._array(inputs.numbers("inputs_embeds", inputs_embeds))
            hidden = self.xp.astype(hidden, p["norm"]["weight"].dtype)
            if hidden.ndim != 3 or hidden.shape[2] != config.hidden_size:
                raise ValueError(
                    f"inputs_embeds: got shape {tuple(hidden.shape)}, expected (B, T, {config.hidden_size})"
                )
        B, T, _ = hidden.shape
        if not isinstance(cache, KVCache | None):
            raise TypeError(f"cache: got {type(cache).__name__}, expected a KVCache, such as the output's cache")
        if cache is not None and cache.num_layers != config.num_hidden_layers:
            raise ValueError(
                f"cache: got a KVCache of {cache.num_layers} layers, expected {config.num_hidden_layers}, as the model "
                "has; make one for this model"
            )
        past = 0 if cache is None else len(cache)
        if cache is None and (config.use_cache if use_cache is None else use_cache):
            cache = KVCache(config.num_hidden_layers)
        positions = inputs.positions(position_ids, B, T, past)
        context = self._context(positions, hidden, cache)
        self._set_visibility(context, attention_mask, B, T, past + T, positions if position_ids is not None else None)
        return hidden, context

    def _context(self, positions: inputs.IntArray, hidden: Array, cache: KVCache | None) -> Context:
        config = self.config
        length = int(positions.max()) + 1
        if length > config.max_position_embeddings and not self.warned_of_length:
            self.warned_of_length = True
            warn(
                f"the text is longer than the {config.max_position_embeddings} positions that this model was made for "
                "(max_position_embeddings): what follows is computed all the same, and may be worse"
            )
        frequencies, scale = self.ops.rope_frequencies(
            config.rope_parameters, config.head_dim, config.max_position_embeddings, length
        )
        cos, sin = self.ops.rope_cos_sin(self._array(positions), frequencies, scale, hidden.dtype)
        return Context(config, self.ops, cos, sin, cache=cache)

    def _set_visibility(
        self, context: Context, attention_mask: Any, B: int, T: int, S: int, positions: inputs.IntArray | None
    ) -> None:
        """Set which keys each query may attend to: a causal mask with a 2-D padding mask, or a 4-D mask."""
        if attention_mask is None:
            # Without a cache, transformers reads positions that restart as several packed sequences.
            if positions is not None and context.cache is None and (positions[:, 1:] - positions[:, :-1] != 1).any():
                context.mask = self.ops.packed_mask(self._array(positions))
            return
        given = inputs.host("attention_mask", attention_mask)
        if given.ndim == 2:
            seen = inputs.two_dimensional_mask(given, B, S)
            context.mask = None if seen is None else self.ops.padding_mask(self._array(seen))
        elif given.ndim == 4:
            mask, bias = inputs.four_dimensional_mask(given, B, self.config.num_query_heads, T, S)
            context.causal = False
            context.mask = None if mask is None else self._array(mask)
            context.bias = None if bias is None else self.xp.astype(self._array(bias), context.cos.dtype)
        else:
            raise ValueError(f"attention_mask: got shape {given.shape}, expected (B, S) or (B, 1 or H, T, S)")


def restore(
    cls: Any,
    config: DiffLlamaConfig,
    source: str | None,
    options: dict[str, Any] | None,
    weights: Any,
    backend: str,
    choices: dict[str, Any],
) -> Any:
    """Rebuild a pickled model.

    `weights` is the nested dict, or with the `options` of loading the checksum of the weights in `source`.

    Raises:
        CheckpointError: the folder is not there, or holds another model.
    """
    if options is None:
        model = cls(config, weights, backend=importlib.import_module(backend), **choices)
    else:
        folder = Path(str(source))
        files = identities(folder)
        params = load(folder, config, cls.__name__, dtype=choices["dtype"], **options)
        model = cls(config, params, backend=importlib.import_module(backend), **choices)
        if checksum(model.params) != weights:
            raise CheckpointError(
                f"{folder}: got other weights than those of the pickled model, expected the same; "
                "pickle the model again, or put its files back"
            )
        model._origin = Origin(folder, files, options, flatten(model.params))
    model.source = source
    return model


def _check_config(config: Any, name: str) -> None:
    if isinstance(config, DiffLlamaConfig):
        return
    is_path = isinstance(config, str | os.PathLike)
    got = repr(os.fspath(config)) if is_path else type(config).__name__
    fix = f"{name}.from_pretrained({got}) loads a checkpoint" if is_path else "DiffLlamaConfig.from_dict makes one"
    raise TypeError(f"config: got {got}, expected a DiffLlamaConfig; {fix}")


def _backend(name: str | ModuleType, device: Any) -> Any:
    xp = namespace(backend(name).zeros(1))
    check_device(xp, device)
    return xp


def _dtype_name(dtype: Any) -> str:
    """Return the name of a dtype given by name or as NumPy's or torch's; others check whether it is a known one.

    Raises:
        ValueError: no dtype; nor is None, which NumPy would take for float64.
    """
    name = dtype if isinstance(dtype, str) else repr(dtype)
    if isinstance(dtype, str) or name.startswith("torch."):
        return name.removeprefix("torch.")
    with contextlib.suppress(TypeError):
        if dtype is not None:
            return str(np.dtype(dtype).name)
    raise ValueError(f"dtype: got {name}, expected one of {', '.join(DTYPES)}")
