"""Flash attention's conventions, without a GPU: a stand-in that takes what transformers' flash functions take."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import make_plan
from tests.conftest import IMAGE, build_llava, make_inputs

NAME = "flash_stand_in"
SEEN: list[tuple[str, int | None]] = []


def flash_stand_in(module, query, key, value, attention_mask, scaling=None, **_):
    """Causal attention from a 2-D mask of valid keys, or none: as flash attention sees padding."""
    SEEN.append((module.config._attn_implementation, None if attention_mask is None else attention_mask.ndim))
    queries, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], keys)
        itself = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).triu(keys - queries)
        allowed = (allowed & attention_mask[:, None, None, :].bool()) | itself
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, flash_stand_in)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])


@pytest.mark.parametrize("strategy", ["text_weighted", "fastv", "random"])
@pytest.mark.parametrize("rows", [[(3, IMAGE, 6)], [(3, IMAGE, 6), (5, IMAGE, 9)], [(3, IMAGE, 6), (30,)]])
def test_flash_answers_like_sdpa(strategy, rows):
    reference = build_llava()
    model = copy.deepcopy(reference)
    # Not through set_attn_implementation: a name with "flash" in it makes transformers look for a GPU kernel.
    model.get_decoder().config._attn_implementation_internal = NAME
    inputs = make_inputs(model, rows, seed=3)
    SEEN.clear()
    outputs = []
    for one in (model, reference):
        with prune(one, make_plan(strategy, keep_tokens=5), ranks=True) as trace:
            tokens = one.generate(**inputs, max_new_tokens=5, do_sample=False)
        outputs.append((tokens, [document.lengths for document in trace.documents], trace.documents[0].ranks.numeric))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert outputs[0][1:] == outputs[1][1:]
    # The kernel is looked up by the module's config: it must carry its real name also where a layer is observed.
    assert {name for name, _ in SEEN} == {NAME}
    assert {ndim for _, ndim in SEEN} <= {None, 2}
