"""The cases that the mixins of transformers' source distribution need: models of a small size, and tokenizers."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DiffLlamaForQuestionAnswering,
    DiffLlamaForSequenceClassification,
    DiffLlamaForTokenClassification,
    DiffLlamaModel,
    TokenizersBackend,
)

from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin, ids_tensor
from .test_tokenization_common import TokenizerTesterMixin

TOKENIZERS = json.loads(os.environ["SUITE_TOKENIZERS"])


class Sizes:
    """What `ModelTesterMixin` reads of a model's tester."""

    is_training = True
    batch_size, seq_length, vocab_size, hidden_size, intermediate_size = 13, 7, 99, 32, 37
    num_hidden_layers, num_attention_heads, num_labels = 2, 4, 3

    def get_config(self) -> Any:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = {name: getattr(self, name) for name in names}
        return DiffLlamaConfig(**sizes, hidden_act="gelu", max_position_embeddings=512, pad_token_id=0)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.tril(torch.ones_like(ids))}


class ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        DiffLlamaModel,
        DiffLlamaForCausalLM,
        DiffLlamaForSequenceClassification,
        DiffLlamaForQuestionAnswering,
        DiffLlamaForTokenClassification,
    )

    def setUp(self) -> None:
        self.model_tester = Sizes()
        self.config_tester = ConfigTester(self, config_class=DiffLlamaConfig, hidden_size=37)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class _Tokenizer(TokenizerTesterMixin):
    tokenizer_class = TokenizersBackend
    rust_tokenizer_class = TokenizersBackend
    test_seq2seq = False
    test_tokenizer_from_extractor = False


for _name, _folder in TOKENIZERS.items():
    globals()[f"{_name}Test"] = type(
        f"{_name}Test", (_Tokenizer, unittest.TestCase), {"from_pretrained_id": [str(Path(_folder))]}
    )
