"Batches: what they take of the memory, and that they say what a model says alone."
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from cotkd.generate import (Prefix, _gpu_memory, attend_both, cache_room, can_batch,
                            packed_linear)
from cotkd.models import computes_bfloat16


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention_to_a_shared_prefix_is_as_exact_as_torch_s(dtype):
    "Where scores are large, as in Qwen: rounded to 16 bits they would be wrong by tenths"
    torch.manual_seed(0)
    B, H, h, P, S, D = 3, 4, 2, 20, 5, 16
    query = (6*torch.randn(B, H, 1, D)).to(dtype)
    prefix = Prefix(*((6*torch.randn(h, P, D)).to(dtype) for _ in range(2)))
    keys, values = ((6*torch.randn(B, h, S, D)).to(dtype) for _ in range(2))
    mask = torch.zeros(B, 1, 1, S, dtype=dtype)
    all_keys = torch.cat([prefix.keys.expand(B, h, P, D), keys], 2)
    all_values = torch.cat([prefix.values.expand(B, h, P, D), values], 2)
    attend = [x.repeat_interleave(H//h, 1) for x in (all_keys, all_values)]
    exact = F.scaled_dot_product_attention(query.double(), *(x.double() for x in attend))
    theirs = F.scaled_dot_product_attention(query, *attend)
    ours = attend_both(query, prefix, keys, values, mask, D**-.5)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max() + 1e-5


def test_a_tie_that_a_batch_breaks_differently_is_no_fault():
    "Two tokens are equally good, and rounding in the batch prefers the other one"
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, initializer_range=.5)
    model = LlamaForCausalLM(config).eval()
    row = list(range(3, 15))
    with torch.no_grad():
        best = int(model(torch.tensor([row])).logits[0, -1].argmax())
        other = best + 1
        model.lm_head.weight[other] = model.lm_head.weight[best]

    def prefer_other(head, inputs, logits):
        logits[..., other] += 1e-6*(len(logits) - 1)

    model.lm_head.register_forward_hook(prefer_other)
    assert can_batch(model, row)


def test_a_batch_takes_most_of_what_the_weights_leave_on_a_gpu(monkeypatch):
    "Whatever else is in use: the same command has the same batches"
    card = SimpleNamespace(total_memory=int(80e9))
    monkeypatch.setattr('torch.cuda.get_device_properties', lambda device: card)
    assert cache_room(int(26e9), _gpu_memory(torch.device('cuda'))) == int(.7*54e9)
    assert cache_room(int(26e9), _gpu_memory(torch.device('cpu'))) == 2**31


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_weights_laid_out_once_give_the_same_products(dtype):
    "For as long as it takes, and only where this processor is fast at it"
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(96, 64)).to(dtype)
    x = torch.randn(5, 96, dtype=dtype)
    fast = {torch.float32: torch.backends.cpu.get_cpu_capability() == 'AVX512',
            torch.bfloat16: computes_bfloat16(), torch.float64: False}
    with torch.inference_mode():
        plain = layer(x)
        with packed_linear(layer):
            assert ('forward' in vars(layer[0])) == fast[dtype]
            torch.testing.assert_close(layer(x), plain)
        assert 'forward' not in vars(layer[0]) and torch.equal(layer(x), plain)
