"""The config.json of three published checkpoints: their fields, in their order."""

HANDCUT = """{
  "_name_or_path": "kajuma/DiffLlama-0.3B-handcut", "architectures": ["DiffLlamaForCausalLM"],
  "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "lambda_std_dev": 0.1, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "diffllama",
  "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "float32",
  "transformers_version": "4.46.0.dev0", "use_cache": true, "vocab_size": 128256
}"""

ONE_BILLION = """{
  "architectures": ["DiffLlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "lambda_std_dev": 0.1, "max_position_embeddings": 2048, "model_type": "diffllama", "num_attention_heads": 32,
  "num_hidden_layers": 16, "num_key_value_heads": null, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.49.0",
  "use_cache": true, "vocab_size": 61440
}"""

TINY_RANDOM = """{
  "architectures": ["DiffLlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "dtype": "float32", "eos_token_id": 128009, "head_dim": 8, "hidden_act": "gelu",
  "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 37, "is_decoder": false, "lambda_std_dev": 0.1,
  "max_position_embeddings": 512, "model_type": "diffllama", "num_attention_heads": 4, "num_hidden_layers": 2,
  "num_key_value_heads": 2, "pad_token_id": 128004, "rms_norm_eps": 1e-05,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": false,
  "transformers_version": "5.16.0", "use_cache": true, "vocab_size": 128256
}"""
