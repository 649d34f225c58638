"""Write question_answering.json: what the question-answering pipeline of transformers 4 gave, the last that had one.

    python -m tests.golden.make_question_answering

needs transformers 4.57.6 with torch. The model is a formula of the token ids (`logits`), so that nothing but the
pipeline is under test, and the tokenizers stand in the file.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("question_answering.json")
PAIRS = [
    ("Who jumps over the dog?", "The quick brown fox jumps over the lazy dog, and it doesn't stop. It never stops."),
    ("吾輩は何？", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"),
    ("Where?", "Party 🎉 in naïve café e\u0301, 3.14159 * r ** 2\tThe fox the FOX The Fox\n\nthe fox."),
    ("ab?", "b c d"),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"top_k": 5, "max_answer_len": 2},
    {"top_k": 9, "align_to_words": False},
    {"align_to_words": False, "max_answer_len": 1},
    {"handle_impossible_answer": True},
    {"top_k": 4, "handle_impossible_answer": True, "align_to_words": False},
    {"max_seq_len": 40, "doc_stride": 4, "top_k": 3},
    {"max_seq_len": 35, "doc_stride": 0, "top_k": 2, "handle_impossible_answer": True},
]
SIDES = ("right", "left")


def logits(ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Start and end logits (B, T) that differ by token and by place."""
    place = np.arange(ids.shape[1])
    start, end = 5 * np.sin(0.7 * ids + 1.3 * place), 5 * np.cos(0.9 * ids + 0.4 * place)
    return start.astype(np.float32), end.astype(np.float32)


def make() -> dict[str, Any]:
    """Run every case with the transformers that is installed."""
    import tokenizers
    import torch
    import transformers
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    from tests.generation.trained_tokenizers import KINDS

    class Formula(transformers.DiffLlamaForQuestionAnswering):
        def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
            start, end = logits(input_ids.numpy())
            return QuestionAnsweringModelOutput(start_logits=torch.tensor(start), end_logits=torch.tensor(end))

    config = transformers.DiffLlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    backends = {name: KINDS[name]() for name in ("byte_level", "unigram")}
    cases = []
    for (name, backend), side in itertools.product(backends.items(), SIDES):
        # With left padding the pipeline counts pad tokens in the ids, so it must be one that no text has.
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            padding_side=side,
            pad_token="<pad>",
            model_input_names=["input_ids", "attention_mask"],
        )
        pipe = transformers.pipeline("question-answering", model=Formula(config), tokenizer=tokenizer)
        for (question, context), options in itertools.product(PAIRS, OPTIONS):
            answer = pipe(question=question, context=context, **options)
            case = {"tokenizer": name, "padding_side": side, "question": question, "context": context}
            cases.append({**case, "options": options, "answer": answer})
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "files": {name: backend.to_str() for name, backend in backends.items()},
        "cases": cases,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
