import numpy as np
import refdiff

# %% DiffLlamaConfig
config = refdiff.DiffLlamaConfig.from_pretrained("bundled")
print(config.variant, config.num_hidden_layers, config.hidden_size, config.head_dim)
small = refdiff.DiffLlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=300)
print(small.head_dim, small.num_key_value_heads)

# %% DiffLlamaForCausalLM
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
out = model([[0, 1970, 619, 259, 519]], output_attentions=True)
print(out.logits.shape, len(out.attentions), [round(float(x), 2) for x in out.lambdas])
print(model.generate([[0, 1970, 619, 259, 519]], max_new_tokens=4))

# %% DiffLlamaModel
model = refdiff.DiffLlamaModel.from_pretrained("bundled")
print(model([[0, 1970, 619]]).last_hidden_state.shape)

# %% DiffLlamaForSequenceClassification
config = refdiff.DiffLlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=3
)
model = refdiff.DiffLlamaForSequenceClassification.from_config(config, seed=0)
print(model([[1, 2, 3]], labels=[2]).logits.shape)

# %% DiffLlamaForTokenClassification
config = refdiff.DiffLlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=3
)
model = refdiff.DiffLlamaForTokenClassification.from_config(config, seed=0)
print(model([[1, 2, 3]]).logits.shape)

# %% DiffLlamaForQuestionAnswering
config = refdiff.DiffLlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
)
out = refdiff.DiffLlamaForQuestionAnswering.from_config(config, seed=0)([[1, 2, 3]])
print(out.start_logits.shape, out.end_logits.shape)

# %% Tokenizer
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer.encode("Once upon a time")
print(ids, repr(tokenizer.decode(ids, skip_special_tokens=True)))

# %% set_seed
model, texts = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled"), []
for _ in range(2):
    refdiff.set_seed(3)
    texts.append(model.generate([[0, 1970, 619]], do_sample=True, max_new_tokens=5).tolist())
print(texts[0] == texts[1])

# %% KVCache
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
out = model([[0, 1970, 619]], use_cache=True)
after = model([[259]], cache=out.cache)  # one more token, without computing the first three again
whole = model([[0, 1970, 619, 259]])
print(len(after.cache), np.allclose(after.logits[0, -1], whole.logits[0, -1], atol=1e-4))

# %% TextStreamer
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
streamer = refdiff.TextStreamer(tokenizer, skip_prompt=True)
ids = model.generate([tokenizer.encode("Once upon a time")], max_new_tokens=12, streamer=streamer)

# %% BatchTextStreamer
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
streamer = refdiff.BatchTextStreamer(tokenizer, write=lambda row, text: print(row, repr(text)))
ids = model.generate([tokenizer.encode("The wolf")] * 2, max_new_tokens=3, streamer=streamer)

# %% TextIteratorStreamer
from threading import Thread

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
streamer = refdiff.TextIteratorStreamer(tokenizer, skip_prompt=True)
options = {"max_new_tokens": 5, "streamer": streamer}
Thread(target=model.generate, args=([tokenizer.encode("Once upon a time")],), kwargs=options).start()
print(list(streamer))

# %% pipeline
write = refdiff.pipeline("text-generation", model="bundled")
print(write("Once upon a time", max_new_tokens=8, do_sample=False))

# %% CheckpointError
try:
    refdiff.DiffLlamaConfig.from_pretrained("no-such-folder/")
except (refdiff.CheckpointError, OSError) as error:
    print(type(error).__name__, error)

# %% GenerationConfig
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
config = refdiff.GenerationConfig(max_new_tokens=3, do_sample=True, top_k=5)
print(model.generate([[0, 1970, 619]], generation_config=config, seed=1), config.top_k, config.num_beams)


# %% StoppingCriteria
class TwoLines(refdiff.StoppingCriteria):
    """Stops after two commas."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids == comma).sum(axis=1) >= 2


model, tokenizer = (kind.from_pretrained("bundled") for kind in (refdiff.DiffLlamaForCausalLM, refdiff.Tokenizer))
comma = tokenizer.encode(",", add_special_tokens=False)[0]
inputs = tokenizer(["Once upon a time"], return_tensors="np")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60, stopping_criteria=[TwoLines()])[0]))

# %% StoppingCriteriaList, MaxLengthCriteria, MaxTimeCriteria, EosTokenCriteria, StopStringCriteria
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
criteria = refdiff.StoppingCriteriaList(
    [
        refdiff.MaxLengthCriteria(8),
        refdiff.MaxTimeCriteria(5.0),
        refdiff.EosTokenCriteria(0),
        refdiff.StopStringCriteria(tokenizer, "time"),
    ]
)
print(criteria(np.array([tokenizer.encode("Once upon a time"), tokenizer.encode("Once upon the king")]), None))


# %% LogitsProcessor, LogitsProcessorList
class NoEvenIds(refdiff.LogitsProcessor):
    """Leaves odd token ids alone."""

    def __call__(self, input_ids, scores):
        return np.where(np.arange(scores.shape[-1]) % 2 == 0, -np.inf, scores)


model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
print(model.generate([[0, 1970, 619]], max_new_tokens=4, logits_processor=refdiff.LogitsProcessorList([NoEvenIds()])))

# %% WatermarkingConfig, SynthIDTextWatermarkingConfig
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
for watermark in (
    refdiff.WatermarkingConfig(bias=2.5),
    refdiff.SynthIDTextWatermarkingConfig(keys=[3, 5, 7, 11], ngram_len=3),
):
    print(model.generate([[0, 1970, 619]], max_new_tokens=4, watermarking_config=watermark))
