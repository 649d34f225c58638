import numpy as np
import refdiff
from refdiff.generation import sampling

scores = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))

# %% sampling.log_softmax
print(sampling.log_softmax(scores).round(3))

# %% sampling.temperature
print(sampling.softmax(sampling.temperature(scores, 0.5)).round(3))  # below 1: the likely becomes likelier

# %% sampling.top_k
print(sampling.softmax(sampling.top_k(scores, 2)).round(3))

# %% sampling.top_p
print(sampling.softmax(sampling.top_p(scores, 0.7)).round(3))

# %% sampling.top_h
print(sampling.softmax(sampling.top_h(scores, 0.5)).round(3))

# %% sampling.min_p
print(sampling.softmax(sampling.min_p(scores, 0.4)).round(3))  # at least 0.4 times the likeliest

# %% sampling.typical_p
print(sampling.softmax(sampling.typical_p(scores, 0.5)).round(3))

# %% sampling.epsilon_cutoff
print(sampling.softmax(sampling.epsilon_cutoff(scores, 0.2)).round(3))

# %% sampling.eta_cutoff
print(sampling.softmax(sampling.eta_cutoff(scores, 0.2)).round(3))

# %% sampling.top_indices
print(sampling.top_indices(scores, 2))

# %% sampling.draw
print([sampling.draw(np.array([0.5, 0.3, 0.2]), u) for u in (0.1, 0.6, 0.9)])

# %% generate
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
print(refdiff.generation.generate(model, [[0, 1970, 619, 259, 519]], max_new_tokens=4))

# %% results.GenerateDecoderOnlyOutput
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
out = model.generate([[0, 1970]], max_new_tokens=2, return_dict_in_generate=True, output_scores=True)
print(out.sequences, len(out.scores), out.scores[0].shape)

# %% results.GenerateBeamDecoderOnlyOutput
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
out = model.generate([[0, 1970]], max_new_tokens=2, num_beams=2, return_dict_in_generate=True, output_scores=True)
print(out.sequences, out.sequences_scores.round(3))

# %% sampling.Uniforms
stream = sampling.Uniforms(np.random.SeedSequence(7))
print([name for name in dir(stream) if not name.startswith("_")])

# %% sampling.prompt_streams
streams = sampling.prompt_streams(1, [np.array([0, 1970]), np.array([0, 519])])
print(len(streams), type(streams[0]).__name__)  # a prompt draws the same numbers in any batch

# %% sampling.draw_without_replacement
stream = sampling.Uniforms(np.random.SeedSequence(7))
print(sampling.draw_without_replacement(scores[0], 2, stream))

# %% tokenizer.Encoded
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
print(tokenizer(["Once upon a time"], return_tensors="np"))
