"""The base of all five model classes: drawing, loading, saving and pickling weights."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np

from refdiff import hub
from refdiff.arrays import Array, backend, check_device, namespace, to_numpy
from refdiff.backends import backend_for, device_placement, keep_half
from refdiff.checkpoint_files import CONFIG_FILES, WEIGHT_FILES
from refdiff.files import read_json
from refdiff.model.call import CallableModel
from refdiff.model.commit import read_consistently
from refdiff.model.config import FIELDS, DiffLlamaConfig
from refdiff.model.config_checks import DTYPES
from refdiff.model.weights import check_parameters, flatten, initialize, load, nest, resolve_dtype, save
from refdiff.refused import NEUTRAL, RefusedNames, check_neutral

ARGUMENTS = (
    "dtype", "backend", "device", "kernels", "weights", "threads", "mmap", "config", *hub.ARGUMENTS, "torch_dtype",
    *NEUTRAL["from_pretrained"],
)  # fmt: skip
"""What `from_pretrained` takes beside the folder or repo."""


class PreTrainedModel(CallableModel, RefusedNames):
    """A DiffLlama with one head; use one of its subclasses.

    `DiffLlamaForCausalLM(config)` has newly drawn weights, the same as `from_config(config)`; `from_pretrained` loads.

    Attributes:
        architecture: the name of the class that config.json has; a subclass of yours inherits it.
        config: the model's `DiffLlamaConfig`.
        params: the nested weight dict under Hugging Face's names.
        dtype: the precision of the weights, "float32", "float64", "float16" or "bfloat16". The 16-bit ones are
            expanded to float32 in memory, unless the model was loaded with weights="stored".
        device: "cpu" for NumPy, else what was given.
        generation_config: the content of generation_config.json, as a `refdiff.GenerationConfig`; without this file,
            the beginning, end and padding token of the config.
        source: the folder that the model was loaded from, or None.
        ops: the namespace of layer functions that the model calls; put `refdiff.backends.overlay(model.ops, wrap)`
            here to trace, time or replace them.
    """

    config_class = DiffLlamaConfig
    main_input_name: ClassVar[str] = "input_ids"
    base_model_prefix: ClassVar[str] = "model"
    supports_gradient_checkpointing: ClassVar[bool] = False

    architecture: ClassVar[str]

    def __init__(
        self,
        config: Any,
        params: dict[str, Any] | None = None,
        *,
        dtype: Any = "float32",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        threads: int | None = None,
        generation_config: dict[str, Any] | None = None,
    ) -> None:
        config = _check_config(config, type(self).__name__)
        dtype = _dtype_name(dtype)
        if params is None:
            params = initialize(config, self.architecture, dtype=dtype)
        arrays = check_parameters(flatten(params), config, self.architecture)
        self.config = config
        self.dtype = dtype
        self.xp = _backend(backend, device)
        self.device = check_device(self.xp, device)
        with device_placement(self.xp, device, sum(getattr(a, "nbytes", 0) for a in arrays.values())) as put:
            self.params = nest({name: put(array) for name, array in arrays.items()})
        matrices = self.base_params["layers"][0]["self_attn"]["o_proj"]["weight"].dtype
        self.backend = backend_for(self.xp, kernels, threads, getattr(matrices, "name", "float32"))
        self.ops = self.backend.ops
        self.generation_config = generation_config
        self.source: str | None = None
        self.warned_of_length = False
        self._init_options: dict[str, Any] = {"device": device, "kernels": kernels, "threads": threads}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: Any = "auto",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        weights: str = "auto",
        threads: int | None = None,
        mmap: bool = True,
        config: Any = None,
        torch_dtype: Any = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint from a folder or a hub repo.

        Args:
            pretrained_model_name_or_path: a folder with config.json and safetensors, a repo id such
                as "kajuma/DiffLlama-0.3B-handcut", or "bundled", the small model that the package
                brings.
            dtype: "auto" or None = as saved; "float32", "float64", "float16", "bfloat16", or
                NumPy's dtype of it.
            backend: "numpy", "cupy", or any array-API namespace module; JAX's arrays need
                use_cache=False.
            device: where that backend puts its arrays; None is its default. NumPy has "cpu" alone.
            kernels: "fast" = the backend's kernels, "reference" = the equations as written.
            weights: "expanded" = 16-bit weights become float32 when they are loaded; "stored" =
                their matrices stay as they are in the file, for half the memory, and the fast
                kernels expand what they use, or on a CUDA device multiply them so; "auto" =
                "stored" on a CUDA device (by CuPy 14 or newer), else "expanded".
            threads: how many the fast kernels may use on a CPU; None is all cores, or fewer where
                `OPENBLAS_NUM_THREADS` or `OMP_NUM_THREADS` says so.
            mmap: memory-map the weights, which loads at once and shares memory with other
                processes. False reads them whole, for files that may be overwritten in place while
                the model is in use: reading a page of a mapped file that is gone ends the process
                (SIGBUS). Replacing a file by renaming another is safe.
            config: the config to use in place of the checkpoint's, or its folder, file or repo.
            torch_dtype: transformers' older name of `dtype`.
            options: those of `refdiff.hub.HubOptions`, such as revision and token, fields of the
                config to change, such as num_labels, and arguments of transformers at the values
                that change nothing, such as device_map="auto".

        Raises:
            CheckpointError: something is missing or broken; the message names file, tensor and what
                would help.
            TypeError: another argument, such as transformers' attn_implementation; the message has
                those above.
        """
        where: dict[str, Any] = {name: options.pop(name) for name in hub.ARGUMENTS if name in options}
        changes: dict[str, Any] = {name: options.pop(name) for name in FIELDS if name in options}
        check_neutral(cls, "from_pretrained", options, known=hub.ARGUMENTS)
        if dtype is None:
            dtype = "auto"
        if torch_dtype is not None and dtype != "auto":
            raise ValueError("dtype, torch_dtype: got both, expected one of them")
        dtype = dtype if torch_dtype is None else torch_dtype
        xp, dtype = _backend(backend, device), _dtype_name(dtype)  # before anything is downloaded
        stored = keep_half(weights, xp, kernels)
        folder = hub.snapshot(
            pretrained_model_name_or_path,
            files=CONFIG_FILES + WEIGHT_FILES,
            check=DiffLlamaConfig.from_pretrained,
            **where,
        )

        def read() -> tuple[DiffLlamaConfig, dict[str, Any], str, dict[str, Any] | None]:
            own = DiffLlamaConfig.from_pretrained(folder, **changes) if config is None else _given(config, changes)
            params = load(folder, own, cls.architecture, dtype=dtype, stored=stored, mapped=mmap)
            resolved = resolve_dtype(folder, own, dtype)
            path = folder / "generation_config.json"
            return own, params, resolved, read_json(path) if os.path.lexists(path) else None

        own, params, resolved, generation_config = read_consistently(folder, read)
        model = cls(
            own,
            params,
            dtype=resolved,
            backend=xp,
            device=device,
            kernels=kernels,
            threads=threads,
            generation_config=generation_config,
        )
        model.source = str(folder)
        return model

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the class has `generate`."""
        return hasattr(cls, "generate")

    @classmethod
    def from_config(
        cls,
        config: Any,
        seed: int = 0,
        *,
        dtype: Any = "float32",
        backend: str | ModuleType = "numpy",
        device: Any = None,
        kernels: str = "fast",
        threads: int | None = None,
    ) -> Self:
        """Create a model with random weights of transformers' distribution, by `seed`."""
        config = _check_config(config, cls.__name__)
        dtype = _dtype_name(dtype)
        params = initialize(config, cls.architecture, seed=seed, dtype=dtype)
        return cls(config, params, dtype=dtype, backend=backend, device=device, kernels=kernels, threads=threads)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "5GB",
        *,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        """Write the configs and safetensors that transformers and refdiff load.

        An interrupted save leaves the old checkpoint or the new one.

        Args:
            save_directory: made if it is not there.
            max_shard_size: bytes, or a number with KB, MB, GB or TB; larger models are split into
                shards.
            dtype: the stored precision; None keeps the model's.
            options: arguments of transformers at the values that change nothing.

        Raises:
            OSError: the disk is full or not writable; the message says which checkpoint counts, the
                old or the new.
        """
        check_neutral(self, "save_pretrained", options)
        save(
            save_directory, self.config, self.params, self.architecture,
            dtype=self.dtype if dtype is None else _dtype_name(dtype), max_shard_size=max_shard_size,
            generation_config=self.generation_config,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the arguments of `restore`.

        Raises:
            TypeError: `ops` were replaced by functions of this process.
        """
        if not self.backend.is_own(self.ops):
            raise TypeError(
                "ops: got replaced functions, which do not pickle, expected the backend's own; send the model without "
                "them, and put them into its `ops` where it arrives"
            )
        choices = {**self._init_options, "dtype": self.dtype, "generation_config": self.generation_config}
        weights = nest({name: to_numpy(a) for name, a in flatten(self.params).items()})
        return restore, (type(self), self.config, self.source, weights, self.xp.__name__, choices)

    def __copy__(self) -> Self:
        """Return a shallow copy, which also has a replaced `ops`."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __repr__(self) -> str:
        c = self.config
        return (
            f"{type(self).__name__}({self.num_parameters():,} parameters, {c.num_hidden_layers} layers, "
            f"variant={c.variant!r}, dtype={self.dtype!r})"
        )

    def push_to_hub(
        self, repo_id: str, *, token: str | bool | None = None, private: bool | None = None,
        commit_message: str | None = None, max_shard_size: int | str = "5GB", **options: Any,
    ) -> str:  # fmt: skip
        """Upload what `save_pretrained` writes to a hub repo; return the address of the commit.

        Args:
            repo_id: such as "user/name".
            token: of the hub; None is the one of `hf auth login`.
            private: whether a new repo is private; None is the default of the account.
            commit_message: what the commit is called.
            max_shard_size: as in `save_pretrained`.
            options: arguments of transformers at the values that change nothing.
        """
        check_neutral(self, "push_to_hub", options)
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size)
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            message = commit_message or f"Upload {type(self).__name__}"
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))

    @property
    def generation_config(self) -> Any:
        """The defaults of `generate`'s options: a `refdiff.GenerationConfig`."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, options: Any) -> None:
        from refdiff.generation.options import GenerationConfig  # imported late: generation imports model

        if not isinstance(options, GenerationConfig):
            names = ("bos_token_id", "eos_token_id", "pad_token_id") if options is None and self.can_generate() else ()
            tokens = {name: token for name in names if (token := getattr(self.config, name)) is not None}
            read, options = options or tokens, GenerationConfig()
            dict.update(options, read)  # unchecked: `generate` checks them, and names the file
        self._generation_config: Any = options

    def eval(self) -> Self:
        """Return the model: there is no dropout, so that training and evaluation compute the same."""
        return self

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Return the model, if it is on this device and of this dtype.

        Raises:
            ValueError: it is not: arrays are placed by `from_pretrained(backend=, device=,
                dtype=)`.
        """
        asked = str(device).removeprefix("torch.")
        if asked in DTYPES:
            device, dtype = None, asked
        if device is not None and str(device) != str(self.device or "cpu"):
            raise ValueError(f"to: got device {device!r}, expected {self.device!r}; load with backend= and device=")
        if dtype is not None and _dtype_name(dtype) != self.dtype:
            raise ValueError(f"to: got dtype {_dtype_name(dtype)}, expected {self.dtype}; load with dtype=")
        return self

    def state_dict(self, **options: Any) -> dict[str, Array]:
        """Return the weights by name, as a flat dict; a tied output matrix has both of its names."""
        check_neutral(self, "state_dict", options, "parameters")
        named = flatten(self.params)
        if self.architecture == "DiffLlamaForCausalLM" and "lm_head.weight" not in named:
            named["lm_head.weight"] = named["model.embed_tokens.weight"]
        return named

    def named_parameters(self, **options: Any) -> Iterator[tuple[str, Array]]:
        """Yield the name and the array of each weight; tied ones come once."""
        check_neutral(self, "named_parameters", options, "parameters")
        return iter(flatten(self.params).items())

    def parameters(self, **options: Any) -> Iterator[Array]:
        """Yield the array of each weight; tied ones come once."""
        check_neutral(self, "parameters", options)
        return iter(flatten(self.params).values())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the numbers in the weights; tied ones count once.

        Args:
            only_trainable: changes nothing, since all are trainable.
            exclude_embeddings: leave out those of the embedding table.
        """
        named = flatten(self.params)
        return sum(int(a.size) for name, a in named.items() if not (exclude_embeddings and "embed_tokens" in name))

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **options: Any
    ) -> Array:
        """Give the vocabulary another size, in place; return the new embedding table (V, D).

        The size is rounded up to a multiple of `pad_to_multiple_of`; without one, it stays.

        New rows are the mean of the old ones (transformers draws them from a distribution with this
        mean and hardly any spread), in the embedding table and the output matrix.
        """
        check_neutral(self, "resize_token_embeddings", options)
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, value in {"new_num_tokens": size, "pad_to_multiple_of": multiple}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
        size += -size % multiple
        xp, heads = self.xp, [self.base_params["embed_tokens"], self.params.get("lm_head")]
        for head in filter(None, heads):
            old = head["weight"]
            new = xp.broadcast_to(xp.mean(old, axis=0, keepdims=True), (max(0, size - len(old)), old.shape[1]))
            head["weight"] = xp.concat([old[:size, ...], xp.astype(new, old.dtype)], axis=0)
        self.config.vocab_size = size
        return self.base_params["embed_tokens"]["weight"]


def _check_config(config: Any, name: str) -> DiffLlamaConfig:
    if isinstance(config, str | os.PathLike):
        got = repr(os.fspath(config))
        raise TypeError(
            f"config: got {got}, expected a DiffLlamaConfig; {name}.from_pretrained({got}) loads a checkpoint"
        )
    return DiffLlamaConfig.from_config(config)


def _given(config: Any, changes: dict[str, Any]) -> DiffLlamaConfig:
    if isinstance(config, str | os.PathLike):
        return DiffLlamaConfig.from_pretrained(config, **changes)
    own = DiffLlamaConfig.from_config(config)
    if changes:
        own = copy.deepcopy(own)
        own.update(changes)
    return own


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


def restore(
    cls: Any, config: DiffLlamaConfig, source: str | None, weights: Any, backend: str, choices: dict[str, Any]
) -> Any:
    """Rebuild a pickled model."""
    model = cls(config, weights, backend=importlib.import_module(backend), **choices)
    model.source = source
    return model
