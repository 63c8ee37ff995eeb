"The loss and its gradients against float64, where it is hard: half precision, padding, weights."
import pytest
import torch
from torch.nn.functional import cross_entropy

from cotkd.losses import BLOCK, CHUNK_BYTES, DIVERGENCES, Objective, Side
from cotkd.losses import fused_kd_loss, fused_loss, kd_loss

NAMES = list(DIVERGENCES)


def pair(seed, N=64, V=500, off=1.):
    "(student, teacher): a student that is `off` away from its teacher"
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    hidden = normal(N, 48)
    head = normal(V, 48) * 48**-.5 * 3
    away = torch.cat([hidden[:, :32], hidden[:, 32:] * off * .1], 1)
    student_head = head[:, :32] + off * .1 * normal(V, 32)
    return Side(hidden[:, :32].contiguous(), student_head), Side(away, head)


def logits(side):
    return side.hidden @ side.head.T


def by_definition(name, p, q):
    "Nats (N,), from probabilities in float64, by the formulas of the papers"
    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    mixed = .1*p + .9*q
    if name == 'jsd':
        middle = (p + q) / 2
        return (kl(p, middle) + kl(q, middle)) / 2
    return {
        'forward_kl': kl(p, q),
        'reverse_kl': kl(q, p),
        'skew_kl': kl(p, mixed),
        'skew_rkl': kl(q, .1*q + .9*p),
        'tvd': (p - q).abs().sum(-1) / 2}[name]


def oracle(name, student, teacher, temperature=1.):
    "(loss, gradient of the student's hidden states, of its head), in float64"
    hidden = student.hidden.double().detach().requires_grad_()
    head = student.head.double().detach().requires_grad_()
    q = (hidden @ head.T / temperature).softmax(-1)
    p = (logits(Side(teacher.hidden.double(), teacher.head.double())) / temperature).softmax(-1)
    loss = by_definition(name, p, q).mean()
    return loss.item(), *torch.autograd.grad(loss, [hidden, head])


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('N, V', [(64, 500), (700, 40), (1, 7)])
@pytest.mark.parametrize('temperature', [1., 2.])
def test_value_and_gradients(name, N, V, temperature):
    "Also where a batch has more positions than the vocabulary has tokens"
    student, teacher = pair(0, N, V)
    want, of_hidden, of_head = oracle(name, student, teacher, temperature)
    plain = kd_loss(logits(student), logits(teacher), divergence=name, temperature=temperature)
    student.hidden.requires_grad_()
    student.head.requires_grad_()
    fused = fused_kd_loss(student.hidden, student.head, teacher.hidden, teacher.head,
                          divergence=name, temperature=temperature)
    fused.backward()
    assert plain.item() == pytest.approx(want, rel=1e-5)
    assert fused.item() == pytest.approx(want, rel=1e-5)
    assert relative(student.hidden.grad, of_hidden) < 1e-5
    assert relative(student.head.grad, of_head) < 1e-5


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('off', [1., .05])
def test_bfloat16_keeps_the_gradient(name, off):
    sides = pair(1, off=off)
    student, teacher = [Side(side.hidden.bfloat16(), side.head.bfloat16()) for side in sides]
    want, of_hidden, _ = oracle(name, student, teacher)
    if off < 1 and name == 'forward_kl':
        assert want < .006  # the student is close: the hard case
    student.hidden.requires_grad_()
    loss = fused_loss(student, teacher, Objective(name))
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=1e-4)
    assert relative(student.hidden.grad, of_hidden) < 5e-3


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_student_equal_to_its_teacher_has_no_loss(name, dtype):
    "However loud the padding is, and however unequal"
    side, _ = pair(2, V=1500)
    head = torch.cat([side.head, 9 * torch.randn(128, 32)]).to(dtype)
    hidden = side.hidden.to(dtype)
    fused = fused_loss(Side(hidden, head[:1564]), Side(hidden, head), Objective(name), vocab=1500)
    z = (hidden @ head.T)[:, :1500]
    assert fused.abs() < 1e-6
    assert kd_loss(z, z, divergence=name).abs() < 1e-6


def mixture(student, teacher, labels, weights):
    "By hand: 0.7 T² KL(T = 2) + 0.3 cross-entropy, in float64"
    z = student.hidden.double() @ student.head.double().T
    t = teacher.hidden.double() @ teacher.head.double().T
    p, q = (t / 2).softmax(-1), (z / 2).softmax(-1)
    text = cross_entropy(z, labels, reduction='none')
    value = .7 * 4 * (p * (p / q).log()).sum(-1) + .3 * text
    return (value * weights).sum() / weights.sum()


def test_weights_and_cross_entropy():
    student, teacher = pair(3)
    student.hidden.requires_grad_()
    labels = torch.randint(0, 500, (64,))
    weights = torch.rand(64)
    options = dict(temperature=2., ce_weight=.3, t_squared=True)
    fused = fused_loss(student, teacher, Objective(**options), weights=weights, labels=labels)
    plain = kd_loss(logits(student), logits(teacher), weights, labels=labels, **options)
    want = mixture(student, teacher, labels, weights)
    gradient, = torch.autograd.grad(want, student.hidden)
    for loss in (fused, plain):
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        found, = torch.autograd.grad(loss, student.hidden)
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_autocast():
    student, teacher = pair(3)
    with torch.autocast('cpu', torch.bfloat16):
        low = fused_loss(student, teacher)
    assert low.item() == pytest.approx(fused_loss(student, teacher).item(), rel=.02)


def test_biases_and_soft_caps():
    student, teacher = pair(5)
    bias = torch.randn(500)
    student = Side(student.hidden, student.head, bias, softcap=3.)
    z = 3 * ((logits(student) + bias) / 3).tanh()
    student.hidden.requires_grad_()
    want = kd_loss(3 * ((logits(student) + bias) / 3).tanh(), logits(teacher))
    gradient, = torch.autograd.grad(want, student.hidden)
    found, = torch.autograd.grad(fused_loss(student, teacher), student.hidden)
    assert kd_loss(z, logits(teacher)).item() == pytest.approx(want.item(), rel=1e-6)
    assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    student, teacher = pair(4)
    student.hidden.requires_grad_()
    fused_loss(student, teacher).backward()
    frozen = student.hidden.grad.clone()
    assert student.head.grad is None
    student.hidden.grad = None
    student.head.requires_grad_()
    fused_loss(student, teacher).backward()
    assert torch.equal(frozen, student.hidden.grad)
    assert student.head.grad is not None


def test_nothing_supervised_is_nothing_lost():
    student, teacher = pair(6)
    none = torch.zeros(64, dtype=torch.bool)
    z = logits(student).requires_grad_()
    loss = kd_loss(z, logits(teacher), none)
    loss.backward()
    empty = Side(student.hidden[:0].requires_grad_(), student.head)
    fused = fused_loss(empty, Side(teacher.hidden[:0], teacher.head))
    fused.backward()
    assert loss.item() == fused.item() == 0
    assert not z.grad.any()


def test_chunks_change_nothing(monkeypatch):
    student, teacher = pair(7, N=50, V=40)
    whole = fused_loss(student, teacher)
    monkeypatch.setitem(CHUNK_BYTES, 'cpu', 7 * 2 * 40 * 4)
    monkeypatch.setitem(BLOCK, 'cpu', 3 * 40)
    assert fused_loss(student, teacher).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize('call, words', [
    (lambda s, t: fused_loss(s, Side(t.hidden[:3], t.head)), 'same positions of the same text'),
    (lambda s, t: fused_loss(s, Side(t.hidden, t.head[:9])), 'pass vocab'),
    (lambda s, t: fused_loss(s, t, vocab=501), 'has only 500 rows'),
    (lambda s, t: fused_loss(Side(s.hidden, t.head), t), 'expected'),
    (lambda s, t: fused_loss(s, None), 'no teacher'),
    (lambda s, t: fused_loss(s, t, Objective(ce_weight=.5)), 'needs labels'),
    (lambda s, t: kd_loss(logits(s), logits(t)[:, :9]), 'expected equal shapes')])
def test_wrong_pairings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(*pair(8))
