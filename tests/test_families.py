"Families that differ in what a distillation meets: each check that all families were put to"
import pytest
from families import CHECKS

SOME = {
    'llama': 'the ordinary case',
    'gpt_neox': 'names in its checkpoints that the module does not have',
    'gemma2': 'windows, and logits that are squeezed',
    'qwen3_moe': 'experts in one tensor',
    'qwen3_5_text': 'layers with a state beside layers of attention',
    'mamba': 'a state and no attention',
    'rwkv': 'cannot share a batch',
}


@pytest.mark.parametrize('name', SOME)
@pytest.mark.parametrize('check', ['loss', 'answers', 'some layers'])
def test_value(name, check):
    CHECKS[check](name)


@pytest.mark.parametrize('name, check', [
    ('gpt_neox', 'resumed, best kept'), ('qwen3_moe', 'resumed, best kept'),
    ('gemma2', 'saved'), ('qwen3_5_text', 'resumed'), ('mamba', 'adapters saved'),
    ('falcon', 'adapters saved'),  # its linear layers are a class of their own
    ('qwen3_moe', 'adapters resumed')])
def test_training(name, check):
    CHECKS[check](name)
