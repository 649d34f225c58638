"""Names of transformers that refdiff does not have, and what serves instead."""

from __future__ import annotations

import inspect
import sys
from abc import ABCMeta
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib import util
from typing import TYPE_CHECKING, Any, Never

from refdiff.messages import did_you_mean, refuse_arguments

MODEL = {
    "the weights are arrays in `params`, and the layers functions in `ops`": """
        T_destination add_module apply base_model buffers call_super_init children dropout dump_patches embed_tokens
        extra_repr get_buffer get_extra_state get_parameter get_parameter_or_buffer get_submodule layers lm_head model
        modules named_buffers named_children named_modules named_non_persistent_buffers norm padding_idx
        qa_outputs register_buffer register_module register_parameter retrieve_modules_from_names rotary_emb score
        set_extra_state set_submodule share_memory smart_apply to_empty transformer type""",
    "put `refdiff.backends.overlay(model.ops, wrap)` into `ops`; `wrap` sees every call of a layer": """
        can_record_outputs register_backward_hook register_forward_hook register_forward_pre_hook
        register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
        register_load_state_dict_pre_hook register_state_dict_post_hook register_state_dict_pre_hook""",
    "give `dtype`, `backend` and `device` to `from_pretrained`": """
        bfloat16 cpu cuda double float get_memory_footprint half ipu mtia xpu""",
    "`loss_and_grad` returns the gradients, and `refdiff.training` trains": """
        activation_checkpointing_disable activation_checkpointing_enable disable_input_require_grads
        enable_input_require_grads gradient_checkpointing gradient_checkpointing_disable gradient_checkpointing_enable
        is_activation_checkpointing is_gradient_checkpointing loss_function loss_type requires_grad_
        train training zero_grad""",
    "give `kernels` to `from_pretrained`: the fast ones or the equations": """
        compile get_compiled_call get_correct_attn_implementation get_correct_experts_implementation
        get_experts_implementation is_backend_compatible kernel_config kernels_mode reset_kernels
        set_attn_implementation set_experts_implementation set_use_kernels use_kernels""",
    "merge the adapter into the weights with peft, and save them": """
        active_adapters add_adapter delete_adapter disable_adapters enable_adapters enable_peft_hotswap
        get_adapter_state_dict load_adapter set_adapter""",
    "one process holds the whole model; the guide on clusters has more": """
        barrier_after_gathered_checkpoint_save ep_plan fsdp_plan fsdp_size gather_sharded_state_dict_for_save
        init_parallel_plans is_distributed_loading_by_transformers maybe_distribute_model pp_plan
        prepare_distribute_model save_distributed_checkpoint should_save_on_this_rank supports_context_parallel
        supports_pp_plan supports_tp_plan tp_plan tp_size""",
    "`generate` takes a batch of prompts": """
        adjust_generation_fn continuous_batching_context_manager destroy_cached_continuous_batching_manager
        generate_batch heal_tokens init_continuous_batching load_custom_generate prepare_inputs_for_generation
        warn_if_padding_and_no_attention_mask""",
    "`from_config` draws weights, and `from_pretrained` loads them": """
        all_tied_weights_keys get_expanded_tied_weights_keys get_init_context init_weights initialize_weights
        load_state_dict mark_tied_weights_as_initialized post_init tie_weights""",
    "use `config`, which has it": "num_labels vocab_size",
    "use `source`, the folder that was loaded": "name_or_path",
    "use `generation_config`": "generation_config_class",
    "DiffLlama is a decoder alone": "get_decoder get_encoder set_decoder set_encoder",
    "DiffLlama has no table of positions": "get_position_embeddings resize_position_embeddings",
    "refdiff reads no quantized weights": "dequantize",
    "no code of a checkpoint is run": "is_custom_code is_remote_code register_for_auto_class",
    "edit README.md beside the checkpoint": "add_model_tags model_tags",
    "call the model with `input_ids`": "dummy_inputs input_modalities output_modalities",
    "the weights are in `params`, under Hugging Face's names": """
        get_input_embeddings get_output_embeddings set_input_embeddings set_output_embeddings""",
}
"""Sentence → names of transformers' model classes."""

CONFIG = {
    "one process holds the whole model": """
        base_model_ep_plan base_model_fsdp_plan base_model_pp_plan base_model_tp_plan""",
    "every layer of a DiffLlama has one and the same config, without parts": """
        allow_global_per_layer_attribute_access attribute_map base_config_key get_mtp_config is_heterogeneous
        per_layer_attributes per_layer_config serialize_explicit_per_layer_config sub_configs_defaults""",
    "use `rope_parameters`, which is checked when it is set": """
        convert_rope_params_to_dict default_rope_type default_theta ignore_keys_at_rope_validation
        nested_rope_parameter_keys rope_scaling standardize_rope_params validate_rope""",
    "values are checked when they are set": """
        validate validate_architecture validate_layer_type validate_output_attentions validate_token_ids""",
    "no code of a checkpoint is run": "is_custom_code is_remote_code register_for_auto_class",
    "`to_dict` returns the fields": "default_config_fields dict_dtype_to_str",
    "`from_pretrained` reads config.json": "extra_config_files extra_files get_config_dict",
    "use `dtype`": "torch_dtype",
    "use `update`, which takes a dict": "update_from_string",
    "a model or tokenizer has its folder as `source`": "name_or_path",
    "`push_to_hub` of a model uploads the config, too": "push_to_hub",
    "`refdiff.__version__` is the version that writes the config": "transformers_version",
    "give it to the call of the model": "use_return_dict",
    "the MLP is computed at once": "chunk_size_feed_forward",
}
"""Sentence → names of transformers' config."""

TOKENIZER = {
    "the parts of the tokenizer are in tokenizer.json; change it there with the package tokenizers": """
        add_prefix_space can_save_slow_tokenizer convert_added_tokens convert_to_native_format decoder model
        set_truncation_and_padding slow_tokenizer_class train_new_from_iterator update_post_processor""",
    "`decode` takes `clean_up_tokenization_spaces`": """
        clean_up_tokenization clean_up_tokenization_spaces
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output""",
    "the chat template formats messages: `apply_chat_template`": """
        chat_control_tokens encode_message_with_chat_template get_response_parser parse_response response_template
        save_chat_templates""",
    "refdiff has one class of tokenizers": """
        files_loaded pretrained_vocab_files_map register_for_auto_class verbose
        vocab_files_names""",
    "`save_pretrained` writes all files": "save_vocabulary",
    "the post-processor in tokenizer.json adds tokens": "add_bos_token add_eos_token",
    "use `backend`, whose `native` is the tokenizer of the package tokenizers": "backend_tokenizer",
    "the call takes `return_special_tokens_mask`": "get_special_tokens_mask",
    "use `config`, the fields of tokenizer_config.json": "SPECIAL_TOKENS_ATTRIBUTES init_inputs init_kwargs",
    "use `source`, the file that was loaded": "name_or_path",
    "`save_pretrained` writes a folder that huggingface_hub uploads": "push_to_hub",
    "give `truncation` and `max_length` to the call": "max_len_sentences_pair max_len_single_sentence",
}
"""Sentence → names of transformers' tokenizers."""


PIPELINE = {
    "a pipeline of text takes a model and a tokenizer": """
        feature_extractor image_processor processor video_processor""",
    "the task chooses the class": "pipeline_class",
    "`top_k=None` returns all labels": "return_all_scores",
    "the tokenizer counts the characters of each token": "offset_mapping",
    "the results are objects of Python": "binary_output",
}
"""Sentence → arguments of transformers' pipelines."""

GENERATE = {
    "assistant_model or prompt_lookup_num_tokens guesses tokens": """
        assistant_early_exit assistant_ensemble_weight assistant_lookbehind speculation_type target_lookbehind
        use_mtp""",
    "assistant_model takes a model with the same vocabulary": "assistant_tokenizer",
    "there is one kind of cache, in full precision, which needs no config": "cache_config cache_implementation",
    "a call takes a batch of prompts": "continuous_batching_config",
    "no code of a checkpoint is run; call the model in a loop of your own": "custom_generate",
    "DiffLlama is a decoder alone: the prompt starts it": "decoder_start_token_id",
    "num_beams searches in one group": "diversity_penalty num_beam_groups",
    "output_hidden_states returns what it would contrast": "dola_layers",
    "leave out the last token of the prompt": "token_healing",
    "prefix_allowed_tokens_fn says which tokens may follow": "constraints force_words_ids",
    "return_dict_in_generate chooses the result": "return_dict",
    "transformers moved contrastive search out of the library, so its results have no reference; no_repeat_ngram_size "
    "and repetition_penalty avoid repetitions": "penalty_alpha",
}
"""Sentence → options of transformers' `generate`."""


TOP_LEVEL = {
    "`refdiff.training` and `refdiff train` train a model": """
        *Callback *Trainer *TrainingArguments Adafactor DataCollator* TrainerControl TrainerState default_data_collator
        get_*schedule*""",
    "DiffLlama is a decoder of text: `DiffLlamaForCausalLM` generates it": """
        AutoBackbone AutoFeatureExtractor AutoImageProcessor AutoModelFor* AutoProcessor AutoVideoProcessor
        *LogitsProcessor EncoderDecoderModel StableAndConfidentStoppingCriteria TextDiffusionStreamer""",
    "`refdiff.TextIteratorStreamer` is read in another thread": "AsyncTextIteratorStreamer",
    "`refdiff.KVCache` is the cache; `KVCache(layers, static=tokens)` allocates it at once": """
        Cache DynamicCache EncoderDecoderCache HybridCache OffloadedCache QuantizedCache SlidingWindowCache
        StaticCache""",
    "`refdiff.DiffLlamaForCausalLM` and its siblings load a Llama too (variant 'plain')": """
        LlamaConfig LlamaForCausalLM LlamaForQuestionAnswering LlamaForSequenceClassification
        LlamaForTokenClassification LlamaModel""",
    "`refdiff.Tokenizer` is the class of all tokenizers": """
        *Tokenizer *TokenizerBase *TokenizerFast BatchEncoding""",
    "`refdiff.DiffLlamaModel` and its siblings are the classes of all models": """
        DiffLlamaPreTrainedModel GenerationMixin PreTrainedModel PretrainedConfig PreTrainedConfig""",
    'refdiff reads no quantized weights; `from_pretrained(weights="stored")` keeps them in 16 bits': """
        AutoRoundConfig AwqConfig BitsAndBytesConfig GPTQConfig HqqConfig QuantoConfig TorchAoConfig""",
    '`refdiff.pipeline("text-generation")` and its siblings return these pipelines': """
*Pipeline""",
    "messages are Python's warnings: use the module warnings": "logging",
    "`Tokenizer.add_tokens` takes that of the package tokenizers": "AddedToken",
    "use Python's argparse, or the command refdiff": "HfArgumentParser",
    "nothing is compiled; give `kernels` to `from_pretrained`": "CompileConfig",
    "use transformers' own, which detects the same watermarks": "SynthIDTextWatermarkDetector WatermarkDetector",
    "refdiff needs NumPy alone, and an error names the package that a call lacks": "is_*_available requires_backends",
    "`refdiff` itself has all names": "*_utils *_utils_base models modeling_outputs utils",
    "refdiff loads DiffLlama and Llama alone: `refdiff.DiffLlamaForCausalLM` and its siblings": """
        *Attention *Backbone *Config *Decoder *Encoder *FeatureExtractor *For* *ImageProcessor* *Layer *Model
        *ModelWith* *Processor *_MAPPING""",
}
"""Sentence → names that are imported from transformers; one with a star stands for all that begin so."""

ATTRIBUTES: dict[str, dict[str, str]] = {
    "PreTrainedModel": MODEL | {"the class itself loads and makes models of every kind": "register"},
    "DiffLlamaConfig": CONFIG | {"the class itself loads and makes configs of every kind": "for_model register"},
    "Tokenizer": TOKENIZER | {"the class itself loads tokenizers of every kind": "register"},
    "GenerationConfig": {
        "values are checked when they are set": "validate",
        "use `to_dict`": "dict_dtype_to_str to_diff_dict",
        "use `save_pretrained`": "to_json_file",
        "`push_to_hub` of a model uploads it, too": "push_to_hub",
        "the options of a call choose how it decodes": "extra_output_flags get_generation_mode",
    },
    "Encoded": {
        "the result is a dict itself": "data",
        "`sequence_ids` has the text of each token": "n_sequences",
        "give `return_tensors` to the call of the tokenizer": "convert_to_tensors",
    },
    "Output": {
        "a result is read, as a dict is": "clear copy fromkeys move_to_end pop popitem setdefault update",
        "use `cache`": "cache_params",
    },
    "KVCache": {
        "use `reorder`": "batch_repeat_interleave batch_select_indices reorder_cache",
        "use `append`": "update",
        "make a new cache, or use `crop` with 0": "reset",
        "use `static`, the capacity, or None": "get_max_length is_compileable",
        "`append` returns the keys and values of a layer": "layer_class_to_replicate layers",
        "a DiffLlama attends to all tokens, whose keys and values stay in the memory of the device": """
            activate_past_recording early_initialization get_conv_state get_mask_sizes get_query_offset
            get_recurrent_state get_recurrent_states_to_keep has_previous_state increase_count is_croppable is_dummy
            is_initialized is_linear is_recording_past is_sliding offload offloading prefetch update_conv_state
            update_indexer update_recurrent_state""",
    },
    "Pipeline": PIPELINE
    | {
        "call the pipeline": """
            XL_PREFIX call_count default_input_names forward get_inference_context get_iterator postprocess predict
            preprocess run_single transform""",
        "use `model` and `tokenizer`, which have it": "check_model_type dtype push_to_hub save_pretrained torch_dtype",
        "give it to the call": "assistant_model assistant_tokenizer prefix",
        "the model computes where `from_pretrained` put it": "device_placement ensure_tensor_on_device",
    },
    "BatchTextStreamer": {
        "a subclass has `put`, `on_finalized_text` and `end`": """
            decode_kwargs next_tokens_are_prompt print_len token_cache""",
    },
    "StoppingCriteria": {
        "a criterion keeps its arguments only": """
            clean_and_embed_tokens_with_cache clean_tokenizer_vocab embedding_vec max_valid_end_lens
            max_valid_positions maximum_token_len num_stop_strings target_lens""",
    },
    "LogitsProcessor": {"`generate` takes a batch of prompts": "supports_continuous_batching"},
    "_Settings": {
        "the constructor checks the values": "validate",
        "make a new one of `to_dict`": "from_dict update",
        "`GenerationConfig.save_pretrained` writes it, too": "to_json_file to_json_string",
        "give it to `generate` as watermarking_config": "construct_processor",
    },
}
"""Class → sentence → names of transformers' class; its subclasses have them too."""

_OUT = "leave it out"
NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "from_pretrained": {
        "attn_implementation": (_OUT, None, "eager", "sdpa"),
        "device_map": ("one device holds the model, device= of a backend", None, "auto", "cpu"),
        "ignore_mismatched_sizes": ("correct num_labels or vocab_size, or load the base model", None, False),
        "low_cpu_mem_usage": (_OUT, None, True, False),
        **dict.fromkeys(("return_dict", "use_safetensors"), (_OUT, None, True)),
    },
    "save_pretrained": {
        "push_to_hub": ("call `push_to_hub` of the model, or upload the folder", None, False),
        **dict.fromkeys(("filename_prefix", "save_format", "state_dict", "token", "variant"), (_OUT, None)),
        **dict.fromkeys(("is_main_process", "safe_serialization"), (_OUT, None, True)),
        **dict.fromkeys(("distributed_checkpoint", "legacy_format"), (_OUT, None, False)),
        **dict.fromkeys(("save_original_format", "save_peft_format"), (_OUT, None, True, False)),
    },
    "push_to_hub": dict.fromkeys(
        ("commit_description", "create_pr", "revision", "tags"),
        ("give it to huggingface_hub, which uploads the folder of `save_pretrained`", None, False),
    ),
    "parameters": {
        "destination": ("update a dict with the result", None),
        "keep_vars": (_OUT, False, True),
        "prefix": ("add it to the names", ""),
        **dict.fromkeys(("recurse", "remove_duplicate"), (_OUT, True)),
    },
    "resize_token_embeddings": {"mean_resizing": ("new rows are the mean of the old ones; draw others yourself", True)},
    "decode": {"spaces_between_special_tokens": (_OUT, None, True, False)},
    "config": {"return_unused_kwargs": ("the result is the config alone", None, False)},
    "tokenizer": {
        **dict.fromkeys(("legacy", "use_fast"), (_OUT, None, True, False)),
        **dict.fromkeys(("config", "tokenizer_type"), ("tokenizer.json says all of a tokenizer", None)),
        "from_slow": ("convert it once with transformers", None, False),
        **dict.fromkeys(
            ("add_bos_token", "add_eos_token", "add_prefix_space"),
            ("tokenizer.json says it; change it there with the package tokenizers", None),
        ),
    },
    "to_json_string": {
        "use_diff": ("it has what is set", True),
        "ignore_metadata": ("it has no version", False, True),
        "keys_to_pop": ("make a config without them", None),
    },
    "__call__": {
        **dict.fromkeys(("text_target", "text_pair_target"), ("the labels of a decoder are its own input_ids", None)),
        "max_target_length": ("there are no targets", None),
        "tokenizer_kwargs": ("give them as arguments", None),
    },
    "pad": {},
}
"""Method → arguments of transformers: what serves instead, and the values that ask for what is done anyway."""


def check_neutral(
    owner: object, method: str, options: Mapping[str, Any], kind: str = "", known: Iterable[str] = ()
) -> None:
    """Raise for arguments that `NEUTRAL` does not have for the method or `kind`, and for values that it does not.

    The message lists the method's own arguments, those of `known` and those of the table.
    """
    table = NEUTRAL[kind or method]
    cls = owner if isinstance(owner, type) else type(owner)
    if unknown := options.keys() - table.keys():
        own = inspect.signature(getattr(owner, method)).parameters.values()
        named = [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        refuse_arguments(f"{cls.__name__}.{method}", unknown, [*named, *known, *table])
    for name, value in options.items():
        sentence, *values = table[name]
        if value not in values:
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, values))}; {sentence}")


def instead(name: str, table: Mapping[str, str]) -> str | None:
    """Return the sentence that the table has for a name."""
    return next((said for said, names in table.items() if any(fnmatchcase(name, n) for n in names.split())), None)


def refuse_name(name: str) -> Never:
    """Raise for a name that is not in `refdiff`, with what serves instead, or the nearest name.

    Raises:
        ImportError: in `from refdiff import name`, where Python would replace the message of an AttributeError.
        AttributeError: elsewhere.
    """
    refdiff = sys.modules["refdiff"]
    reason = instead(name, TOP_LEVEL)
    message = f"module 'refdiff' has no attribute {name!r}"
    if reason is not None:
        message = f"refdiff.{name}: got a name of transformers, expected one of refdiff; {reason}"
    message += did_you_mean(name, {*dir(refdiff), *refdiff._AUTO}, cutoff=0.8 if reason is None else 0.9)
    if sys._getframe(2).f_code.co_name == "_handle_fromlist" and (reason or not util.find_spec(f"refdiff.{name}")):
        raise ImportError(message)
    raise AttributeError(message)  # for a module, too, which Python imports then


def _sentence(cls: type, name: str) -> str | None:
    tables = (ATTRIBUTES.get(c.__name__, {}) for c in cls.__mro__)
    return next(filter(None, (instead(name, table) for table in tables)), None)


def refuse_attribute(owner: object, name: str) -> Never:
    """Raise `AttributeError` with what serves instead, by `ATTRIBUTES`, or the nearest name."""
    cls = owner if isinstance(owner, type) else type(owner)
    is_public = not name.startswith("_")
    message = f"{cls.__name__!r} object has no attribute {name!r}"
    if is_public and (reason := _sentence(cls, name)):
        message = f"{cls.__name__}.{name}: got a name of transformers, expected one of refdiff; {reason}"
    elif is_public:
        message += did_you_mean(name, {*dir(owner), *(owner if isinstance(owner, Mapping) else ())})
    raise AttributeError(message, name=name, obj=None)  # with the owner, Python would suggest a name a second time


class RefusedAttributes:
    """A base that answers names of transformers by what serves instead, and others by the nearest name."""

    if not TYPE_CHECKING:  # or every attribute would have a type
        __getattr__ = refuse_attribute


class _Class(ABCMeta):  # so that a subclass may be an `abc.ABC`, too
    if not TYPE_CHECKING:
        __getattr__ = refuse_attribute
        register = property(lambda cls: refuse_attribute(cls, "register"))  # which would be ABCMeta's


_NAMES = {name for table in (MODEL, CONFIG, TOKENIZER) for names in table.values() for name in names.split()}


class RefusedNames(RefusedAttributes, metaclass=_Class):
    """The same, whose class answers as its objects do, and which refuses to set these names, too."""

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _NAMES and _sentence(type(self), name):  # to set it would change nothing
                refuse_attribute(self, name)
            super().__setattr__(name, value)
