"""Small tokenizers of the three kinds that checkpoints have, trained on the spot; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and it doesn't stop.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "東京は日本の首都です。ｶﾀｶﾅと、がぎぐ、①②③。",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # a circle\n",
    "Party 🎉 family 👩‍👩‍👧‍👦 flag 🇯🇵 thumbs 👍🏽!",
    "  two  spaces,\ttabs\t\tand\u3000wide\u00a0ones \r\n\r\n",
    "naïve café e\u0301 ﬁne Straße İstanbul ไทย العربية हिन्दी",
]
ODD_TEXTS = ["", " ", "\n", "\x00", "\ufeffbom", "￾", "a" * 300, "<s>inside</s>", "𠮷野家 𝒳", "\u200d\u200b", "<|x|> "]
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    """Bytes as letters, as GPT-2's and Llama 3's; bos first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return _with_bos(backend)


def byte_fallback() -> Tokenizer:
    """SentencePiece's BPE as Llama's: ▁ for a space, unknown characters as bytes <0x00> to <0xFF>; bos first."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [*SPECIAL, *[f"<0x{byte:02X}>" for byte in range(256)]]
    backend.train_from_iterator(
        TEXTS[:1] * 3, trainers.BpeTrainer(vocab_size=330, special_tokens=tokens, show_progress=False)
    )
    # Only three of these are special in Llama's file; the bytes are ordinary entries of the vocabulary.
    parsed = json.loads(backend.to_str())
    parsed["added_tokens"] = parsed["added_tokens"][:3]
    return _with_bos(Tokenizer.from_str(json.dumps(parsed)))


def unigram() -> Tokenizer:
    """SentencePiece's unigram model with its normalization and Metaspace; eos last."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
    )
    return backend


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram}


def save(folder: Path, backend: Tokenizer, **files: Any) -> Path:
    """Write tokenizer.json, and each of `files` (name without .json) beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _with_bos(backend: Tokenizer) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.add_tokens([AddedToken("<|x|>", special=True, normalized=False)])
    return backend
