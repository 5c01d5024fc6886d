"""transformers' `sdpa` attention, made faster on CPUs where one token follows many.

torch's CPU kernel takes 2 to 10 times as long for one bfloat16 query a head as for two. With the 32 heads of an 8
billion parameter Llama after 2048 tokens that is 2.8 ms a layer in place of 0.25; the results are as exact.
"""

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def sdpa(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """See transformers' sdpa_attention_forward; query is [rows, heads, tokens, dimensions].

    Given a mask, here of nothing, that puts the queries which share a key-value head beside each other. Where none
    share one, the query is asked twice.
    """
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] == 1
    if attention_mask is not None or not slow:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    nothing = query.new_zeros(1, 1, 1, 1)
    if query.shape[1] > key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, nothing, **options)
    output, _ = sdpa_attention_forward(module, query.expand(-1, -1, 2, -1), key, value, nothing, **options)
    return output[:, :1], None
