"What the tests of distillation share: rows, tiny models, a trainer."
import torch
from families import make, tokenizer
from transformers import AutoModelForCausalLM, TrainingArguments

from cotkd.prompt import encode
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig, KDTrainer

TINY = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2)
EIGHT = KDConfig(batch_size=8)


def toy_rows():
    return make_toy(['web_of_lies', 'navigate'], 40, seed=5)


def small_teacher():
    return make('llama', 1)


def small_student():
    return make('llama_tied', 2)


def save_teacher(folder):
    "`small_teacher` and its tokenizer, for what reads a teacher by its name"
    small_teacher().save_pretrained(folder/'teacher')
    tokenizer().save_pretrained(folder/'teacher')
    return str(folder/'teacher')


def tiny(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def make_trainer(student, teacher, rows, out, config=EIGHT, callbacks=None, dev=0, **settings):
    defaults = dict(save_strategy='no', max_steps=3, logging_steps=1, learning_rate=1e-3)
    args = TrainingArguments(
        str(out), per_device_train_batch_size=config.batch_size, report_to='none', use_cpu=True,
        disable_tqdm=True, **defaults | settings)
    encoded = [encode(row, tokenizer()) for row in rows]
    return KDTrainer(student, args, encoded, teacher=teacher, vocab=len(tokenizer()),
                     config=config, callbacks=callbacks, dev=dev)


def losses(trainer):
    return [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]


def equal(a, b):
    "Have both models the same weights, bit for bit?"
    left = a.state_dict()
    right = b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
