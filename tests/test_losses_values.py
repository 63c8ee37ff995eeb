"The losses in numbers that can be worked out by hand"
from math import log

import pytest
import torch

from cotkd.losses import (BLOCK, CHUNK_BYTES, DIVERGENCES, Gradients, Objective, Side,
                          fused_kd_loss, fused_loss, get_divergence, kd_loss)

# two tokens: the teacher says 3/4 and 1/4, the student 1/2 and 1/2
TEACHER = torch.tensor([[.75, .25]], dtype=torch.float64).log()
STUDENT = torch.tensor([[.5, .5]], dtype=torch.float64).log()


def kl(p, q):
    return sum(x * log(x / y) for x, y in zip(p, q))


def mixed(share, p, q):
    return [share*x + (1 - share)*y for x, y in zip(p, q)]


P, Q = (.75, .25), (.5, .5)
M = mixed(.9, P, Q)


@pytest.mark.parametrize('name, nats', [
    ('forward_kl', kl(P, Q)),
    ('reverse_kl', kl(Q, P)),
    ('tvd', .25),
    ('jsd', .5*kl(P, mixed(.5, P, Q)) + .5*kl(Q, mixed(.5, P, Q))),
    ('jsd(0.9)', .9*kl(P, M) + .1*kl(Q, M)),
    ('skew_kl', kl(P, mixed(.1, P, Q))),
    ('skew_kl(.9)', kl(P, M)),
    ('skew_rkl', kl(Q, mixed(.1, Q, P))),
    ('skew_rkl(0.25)', kl(Q, mixed(.25, Q, P)))])
def test_two_tokens(name, nats):
    assert kd_loss(STUDENT, TEACHER, divergence=name).item() == pytest.approx(nats, rel=1e-12)


def test_forward_kl_of_two_tokens_is_known():
    assert kd_loss(STUDENT, TEACHER).item() == pytest.approx(.1308120, abs=1e-7)


@pytest.mark.parametrize('name', ['jsd(0)', 'jsd(0.0)', 'jsd(1.0)', 'jsd(1)', 'jsd(-0.5)',
                                  'tvd(0.5)', 'kl', 'jsd(.5', 'xjsd(0.5)'])
def test_an_unknown_divergence_is_refused(name):
    with pytest.raises(ValueError, match='is unknown: choose from forward_kl'):
        get_divergence(name)


def test_a_divergence_of_ones_own():
    def half(d, p, q):
        value, slope = DIVERGENCES['forward_kl'](d, p, q)
        return value / 2, slope / 2

    whole = kd_loss(STUDENT, TEACHER)
    assert kd_loss(STUDENT, TEACHER, divergence=half).item() == pytest.approx(whole.item() / 2)


@pytest.mark.parametrize('temperature', [0, -1, float('inf'), float('nan')])
def test_a_temperature_that_makes_no_sense(temperature):
    with pytest.raises(ValueError, match='expected more than 0'):
        Objective(temperature=temperature)


@pytest.mark.parametrize('share', [-.1, 1.1, 2])
def test_a_share_that_makes_no_sense(share):
    with pytest.raises(ValueError, match='expected a share from 0'):
        Objective(ce_weight=share)


def test_what_the_divergence_is_multiplied_by():
    assert Objective().kd_factor == 1
    assert Objective(ce_weight=1).kd_factor == 0
    assert Objective(temperature=3.).kd_factor == 1
    assert Objective(temperature=3., t_squared=True).kd_factor == 9
    assert Objective(temperature=3., t_squared=True, ce_weight=.25).kd_factor == 6.75
    assert Objective() == Objective('forward_kl', 1., 0., False)


def test_a_mask_leaves_positions_out_and_weights_are_relative():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    pairs = zip(student.flatten(0, 1), teacher.flatten(0, 1))
    each = torch.stack([kd_loss(s, t) for s, t in pairs])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert kd_loss(student, teacher, mask).item() == pytest.approx(each[[0, 2, 5]].mean().item())
    assert kd_loss(student, teacher).item() == pytest.approx(each.mean().item())
    weights = torch.tensor([[1., 0, 2], [0, 0, 5]])
    want = (each[0] + 2*each[2] + 5*each[5]) / 8
    assert kd_loss(student, teacher, weights).item() == pytest.approx(want.item(), rel=1e-5)
    assert kd_loss(student, teacher, 3 * weights).item() == pytest.approx(want.item(), rel=1e-5)
    labels = torch.randint(0, 5, (2, 3))
    text = kd_loss(student, teacher, mask, labels=labels, ce_weight=1.)
    picked = student.log_softmax(-1).gather(-1, labels[..., None])[mask]
    assert text.item() == pytest.approx(-picked.mean().item(), rel=1e-5)


def test_no_gradient_flows_into_the_teacher():
    student = STUDENT.clone().requires_grad_()
    teacher = TEACHER.clone().requires_grad_()
    kd_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.tolist() == [pytest.approx([-.25, .25])]
    head = torch.eye(2, dtype=torch.float64).requires_grad_()
    hidden = TEACHER.clone().requires_grad_()
    fused_kd_loss(student, torch.eye(2, dtype=torch.float64), hidden, head).backward()
    assert hidden.grad is None and head.grad is None


def test_the_gradient_takes_what_it_is_multiplied_by_and_is_given_once():
    head = torch.eye(2, dtype=torch.float64)
    hidden = STUDENT.clone().requires_grad_()
    loss = fused_kd_loss(hidden, head, TEACHER, head)
    (3 * loss).backward(retain_graph=True)
    assert hidden.grad.tolist() == [pytest.approx([-.75, .75])]
    with pytest.raises(RuntimeError, match='hands out its gradients once'):
        loss.backward()


def test_the_gradient_of_the_plain_loss_takes_it_too():
    student = STUDENT.clone().requires_grad_()
    (3 * kd_loss(student, TEACHER)).backward()
    assert student.grad.tolist() == [pytest.approx([-.75, .75])]


def test_a_share_of_the_text_needs_the_text():
    for call in (lambda: kd_loss(STUDENT, TEACHER, ce_weight=.5),
                 lambda: fused_loss(Side(STUDENT, torch.eye(2)), None, Objective(ce_weight=1.))):
        with pytest.raises(ValueError, match='ce_weight needs labels'):
            call()


@pytest.mark.parametrize('of_hidden, of_head', [(torch.float32, torch.bfloat16),
                                                (torch.bfloat16, torch.float32),
                                                (torch.float64, torch.float32)])
def test_hidden_states_and_head_in_two_precisions(of_hidden, of_head):
    generator = torch.Generator().manual_seed(4)
    hidden, head = [torch.randn(n, 3, generator=generator).bfloat16() for n in (4, 7)]
    teacher = torch.randn(4, 7, generator=generator)
    student = Side(hidden.to(of_hidden).requires_grad_(), head.to(of_head).requires_grad_())
    loss = fused_loss(student, Side(teacher, torch.eye(7)))
    z = (hidden.float() @ head.float().T).requires_grad_()
    want = kd_loss(z, teacher)
    slopes, = torch.autograd.grad(want, z)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    of_hidden, of_head = torch.autograd.grad(loss, [student.hidden, student.head])
    assert torch.allclose(of_hidden.float(), slopes @ head.float(), rtol=1e-2, atol=1e-4)
    assert torch.allclose(of_head.float(), slopes.T @ hidden.float(), rtol=1e-2, atol=1e-4)


def test_without_gradients_there_are_none():
    head = torch.eye(2, dtype=torch.float64)
    hidden = STUDENT.clone().requires_grad_()
    with torch.no_grad():
        loss = fused_kd_loss(hidden, head, TEACHER, head)
    assert not loss.requires_grad
    nothing = Gradients(None, None, None)
    assert not nothing.wanted
    assert Gradients(None, None, hidden).wanted and Gradients(hidden, None, None).wanted


def test_cross_entropy_alone_needs_no_teacher():
    side = Side(torch.randn(4, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True))
    labels = torch.tensor([0, 6, 3, 3])
    loss = fused_loss(side, None, Objective(ce_weight=1., temperature=2.), labels=labels)
    want = torch.nn.functional.cross_entropy(side.hidden @ side.head.T, labels)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    found = torch.autograd.grad(loss, [side.hidden, side.head])
    for x, y in zip(found, torch.autograd.grad(want, [side.hidden, side.head])):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-6)


def definition(student, teacher, temperature, share, labels):
    "The mixture, with soft caps, by plain autograd"
    def logits(side):
        z = side.hidden @ side.head.T + side.bias
        return z if side.softcap is None else side.softcap * (z / side.softcap).tanh()

    z, t = logits(student), logits(teacher)
    p, log_q = (t / temperature).softmax(-1), (z / temperature).log_softmax(-1)
    divergence = (p * (p.log() - log_q)).sum(-1).mean()
    text = torch.nn.functional.cross_entropy(z, labels)
    return (1 - share) * divergence + share * text


@pytest.mark.parametrize('softcaps', [(None, 4.), (4., None), (2., 5.)])
@pytest.mark.parametrize('chunk', [1 << 29, 1])
def test_soft_caps_biases_and_a_share_of_the_text_together(softcaps, chunk, monkeypatch):
    "Also where a position is a chunk"
    monkeypatch.setitem(CHUNK_BYTES, 'cpu', chunk)
    monkeypatch.setitem(BLOCK, 'cpu', 16 if chunk == 1 else 1 << 18)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    student = Side(normal(5, 3), normal(8, 3), normal(8), softcaps[0])
    teacher = Side(normal(5, 2), normal(8, 2), normal(8), softcaps[1])
    labels = torch.tensor([1, 0, 7, 4, 4])
    loss = fused_loss(student, teacher, Objective(temperature=2., ce_weight=.3), labels=labels)
    want = definition(student, teacher, 2., .3, labels)
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    leaves = [student.hidden, student.head, student.bias]
    for x, y in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, leaves)):
        assert torch.allclose(x, y, rtol=1e-7, atol=1e-10)


def test_rows_of_padding_get_no_gradient():
    student = Side(torch.randn(4, 3), torch.randn(9, 3, requires_grad=True),
                   torch.randn(9, requires_grad=True))
    fused_loss(student, Side(torch.randn(4, 2), torch.randn(6, 2)), vocab=6).backward()
    assert student.head.grad.shape == (9, 3) and student.bias.grad.shape == (9,)
    assert student.head.grad[:6].all() and not student.head.grad[6:].any()
    assert not student.bias.grad[6:].any()


def test_half_precision_is_summed_in_single():
    hidden, head = torch.randn(4, 3).bfloat16(), torch.randn(7, 3).bfloat16().requires_grad_()
    loss = fused_kd_loss(hidden, head, hidden.float()[:, :2], torch.randn(7, 2))
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.grad.dtype == torch.bfloat16
    z = torch.randn(2, 5)
    assert kd_loss(z.bfloat16(), z.bfloat16()).dtype == torch.float32
    assert kd_loss(z.double(), z.double()).dtype == torch.float64


@pytest.mark.parametrize('vocab', [7, None])
def test_wrong_shapes_are_told(vocab):
    side = Side(torch.randn(4, 3), torch.randn(7, 3))
    flat = Side(torch.randn(4), torch.randn(7))
    with pytest.raises(ValueError, match='teacher hidden states'):
        fused_loss(side, flat, vocab=vocab)
    with pytest.raises(ValueError, match='student hidden states'):
        fused_loss(Side(torch.randn(4, 3), torch.randn(3)), side, vocab=vocab)
    with pytest.raises(ValueError, match='student hidden states'):
        fused_loss(Side(torch.randn(3), torch.randn(7, 3)), side, vocab=vocab)
    assert fused_loss(side, side, vocab=vocab).abs() < 1e-6
