"Without a teacher our loss is the one that everybody trains with"
import copy
from dataclasses import replace

import pytest
import torch
from families import tokenizer
from torch.nn.functional import cross_entropy
from training import small_student, toy_rows
from transformers import DataCollatorForSeq2Seq, Trainer

from cotkd.distill import distill, training_arguments
from cotkd.files import read_lines
from cotkd.models import load_lm
from cotkd.prompt import QUESTION, encode
from cotkd.trainer import KDConfig, SeededSampler

# where a gradient is only rounding, Adam would take a whole step: epsilon keeps it small
CONFIG = KDConfig(batch_size=4, lr=1e-3, epochs=4, ce_weight=1.,
                  trainer=dict(logging_steps=1, adam_epsilon=1e-4))
ROWS = toy_rows()[::2]
UPDATES = 20  # four times the rows


def plain_examples(mode):
    "Tokens, and labels where something is learned, in the order in which our trainer reads them"
    encoded = [encode(row, tokenizer(), mode) for row in ROWS]
    sampler, found = SeededSampler(len(encoded), seed=0), []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for i in sampler:
            labels = [-100 if span == QUESTION else token for token, span in zip(*(
                encoded[i][name] for name in ('input_ids', 'spans')))]
            found.append(dict(input_ids=encoded[i]['input_ids'], labels=labels))
    return found


def double_loss(outputs, labels, num_items_in_batch):
    "Of the next tokens; the loss that comes with a model casts its logits to float32"
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    assert logits.dtype == torch.float64
    return cross_entropy(logits, labels, reduction='sum') / num_items_in_batch


def train_plainly(mode, dtype, out):
    "`transformers.Trainer`, in float32 with its own loss, padded batches"
    args = training_arguments(out, replace(CONFIG, epochs=1.))
    args.train_sampling_strategy = 'sequential'
    padded = copy.deepcopy(tokenizer())
    padded.pad_token = padded.eos_token
    student = small_student().to(dtype)
    trainer = Trainer(student, args, train_dataset=plain_examples(mode),
                      data_collator=DataCollatorForSeq2Seq(padded),
                      compute_loss_func=double_loss if dtype == torch.float64 else None)
    trainer.train()
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    return student, losses


@pytest.mark.parametrize('dtype, closeness', [
    (torch.float64, 1e-6),
    (torch.float32, 2e-6),  # log_softmax of float32 is itself off by 7e-7 on some processors
])
@pytest.mark.parametrize('mode', ['direct', 'cot'])
def test_an_arm_without_a_teacher_is_plain_fine_tuning(mode, dtype, closeness, tmp_path):
    plain, plain_losses = train_plainly(mode, dtype, tmp_path/'plain')
    student = small_student().to(dtype)
    student.float = lambda: student  # which `distill` asks of every student
    distill(student, None, tokenizer(), ROWS, tmp_path/'ours', mode=mode, config=CONFIG)
    losses = [line['loss'] for line in read_lines(tmp_path/'ours/log.jsonl')]
    assert len(losses) == len(plain_losses) == UPDATES
    assert losses == pytest.approx(plain_losses, abs=closeness)
    ours, theirs = load_lm(tmp_path/'ours')[0].state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-5
    before = small_student().state_dict()
    assert max((theirs[name] - before[name]).abs().max() for name in before) > 1e-3
