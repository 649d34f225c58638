"""Mistakes in the rotation of queries and keys."""

from __future__ import annotations

from typing import Any

from refdiff.oracle.mistakes.catalogue import HF_FIRST, MOTIF, Call, Mistake


def _only_the_first_of_a_pair_turns(call: Call) -> Any:
    turned, n = call() + 0, call.cos.shape[-1]
    where = slice(1, 2 * n, 2) if call.interleaved else slice(n, 2 * n)
    turned[..., where] = call.x[..., where]
    return turned


def _only_half_of_the_width_turns(call: Call) -> Any:
    n = call.cos.shape[-1] // 2
    return call(cos=call.cos[..., : 2 * n : 2], sin=call.sin[..., : 2 * n : 2]) if n else call()


def _frequencies_of_a_head_of_twice_the_size(call: Call) -> Any:
    frequencies, scale = call(head_dim=2 * call.head_dim)
    return frequencies[: call.head_dim // 2], scale


def _another_base(call: Call) -> Any:
    base = 500_000.0 if call.parameters.get("rope_theta") == 10_000.0 else 10_000.0
    return call(parameters={**call.parameters, "rope_theta": base})


ROPE_MISTAKES: tuple[Mistake, ...] = (
    Mistake("the_other_pairs_turn", "Neighbors turned where halves are, and halves where neighbors are.", "rope",
            "rope kind", lambda call: call(interleaved=not call.interleaved), "F2", MOTIF),
    Mistake("turned_the_other_way", "By the opposite angle: what comes before counts as coming after.", "rope",
            "rope kind", lambda call: call(sin=-call.sin)),
    Mistake("only_the_first_of_a_pair_turns", "Half of the dimensions left as they are.", "rope", "rope kind",
            _only_the_first_of_a_pair_turns),
    Mistake("only_half_of_the_width_turns", "A partial rotary factor of ½: the first half of each head turned, by the "
            "frequencies of heads of that size.", "rope", "rope dim", _only_half_of_the_width_turns),
    Mistake("frequencies_of_a_head_of_twice_the_size",
            "θ_i = base^(−i / d): the table of a head that is not split into two.", "rope_frequencies", "rope dim",
            _frequencies_of_a_head_of_twice_the_size, "B6", HF_FIRST),
    Mistake("another_base", "10 000 whatever the config says, or 500 000 where it says 10 000.", "rope_frequencies",
            "rope base", _another_base),
    Mistake("rope_type_left_out", "Frequencies of the default type for every type.", "rope_frequencies", "rope base",
            lambda call: call(parameters={"rope_type": "default", "rope_theta": call.parameters["rope_theta"]})),
    Mistake("positions_from_one", "The first token at 1.", "rope_cos_sin", "rope offset",
            lambda call: call(positions=call.positions + 1)),
    Mistake("positions_from_zero_in_every_call", "What is in the cache not counted: every call starts at position 0.",
            "rope_cos_sin", "rope offset", lambda call: call(positions=call.positions - call.positions[:, :1]), "B18",
            "https://github.com/microsoft/unilm/issues/1661"),
    Mistake("scale_of_the_rotation_left_out", "cos and sin as they are, where yarn and longrope multiply them.",
            "rope_cos_sin", "rope scale", lambda call: call(scale=1.0)),
)  # fmt: skip
