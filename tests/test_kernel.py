"The loss as a GPU computes it: the same formulas, compiled. Here a CPU compiles them"
import pytest
import test_losses as plain
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cotkd import losses


@pytest.fixture
def compiled(monkeypatch):
    "A backend -> the kernel of a GPU, and what it has compiled"
    def use(backend):
        torch.compiler.reset()
        counter = CompileCounterWithBackend(backend)
        kernel = torch.compile(losses._value_and_grad, dynamic=True, backend=counter)
        monkeypatch.setattr(losses, '_kernel', lambda device: kernel)
        return counter

    return use


@pytest.mark.parametrize('name', plain.NAMES)
def test_every_divergence(name, compiled):
    counter = compiled('aot_eager')
    plain.test_value_and_gradients(name, 64, 500, 2.)
    plain.test_value_and_gradients(name, 1, 7, 2.)
    plain.test_bfloat16_keeps_the_gradient(name, .05)
    assert counter.frame_count


@pytest.mark.parametrize('check', [
    plain.test_weights_and_cross_entropy, plain.test_biases_and_soft_caps, plain.test_autocast])
def test_all_else_that_makes_a_loss(check, compiled):
    counter = compiled('aot_eager')
    check()
    assert counter.frame_count


def test_the_code_that_is_generated(compiled):
    counter = compiled('inductor')
    plain.test_value_and_gradients('forward_kl', 64, 500, 2.)
    assert counter.frame_count


def test_only_a_gpu_compiles():
    assert losses._kernel('cpu') is losses._value_and_grad
    if not losses.find_spec('triton'):
        assert losses._kernel('cuda') is losses._value_and_grad
