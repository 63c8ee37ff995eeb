"Tiny random models of every family, and what has to hold of each of them."
import tempfile
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoConfig, AutoModelForCausalLM, GenerationConfig,
                          PreTrainedTokenizerFast, TrainerCallback)

from cotkd.distill import distill, validate
from cotkd.files import InputError
from cotkd.generate import generate_batch
from cotkd.models import drop_layers, load_lm, skipping
from cotkd.prompt import cut, encode, format_example
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None,
             eos_token_id=0, pad_token_id=None, initializer_range=.2)
GPT = dict(n_embd=32, n_layer=2, n_head=2)
WINDOW = dict(sliding_window=16)
BOTH_KINDS = ['sliding_attention', 'full_attention']
MIXED = dict(head_dim=16, layer_types=BOTH_KINDS, **WINDOW)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
LINEAR = dict(head_dim=16, layer_types=['linear_attention', 'full_attention'],
              linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=16,
              linear_value_head_dim=16)
LATENT = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
              n_shared_experts=1, first_k_dense_replace=1, topk_group=1, q_lora_rank=None,
              kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16)
SSM = dict(mamba_d_state=8, mamba_d_head=16, mamba_n_heads=4, mamba_n_groups=1, mamba_expand=2)

FAMILIES = {  # name -> settings beyond `SHAPE`; `kind`: model type, where it is not the name
    'llama': {}, 'llama_tied': dict(kind='llama', tie_word_embeddings=True), 'qwen2': {},
    'qwen3': dict(head_dim=16), 'qwen3_moe': dict(head_dim=16, **EXPERTS),
    'qwen3_next': LINEAR | EXPERTS | dict(shared_expert_intermediate_size=32),
    'qwen3_5_text': LINEAR, 'gemma': dict(head_dim=16),
    'gemma2': MIXED | dict(final_logit_softcapping=30.), 'gemma3_text': MIXED,
    'gemma3n_text': dict(
        head_dim=16, layer_types=BOTH_KINDS, vocab_size_per_layer_input=600, num_kv_shared_layers=0,
        hidden_size_per_layer_input=8, laurel_rank=4, altup_num_inputs=2,
        intermediate_size=[64, 64],
        activation_sparsity_pattern=[0., 0.], **WINDOW),
    'gemma4_text': {}, 'vaultgemma': dict(head_dim=16, **WINDOW), 'mistral': WINDOW,
    'mistral_full': dict(kind='mistral', sliding_window=None),
    'mixtral': dict(num_local_experts=4, sliding_window=None),
    'phi': dict(partial_rotary_factor=.5), 'phi3': dict(pad_token_id=0, **WINDOW), 'gpt2': {},
    'gpt_neox': dict(rotary_pct=.25), 'gpt_neox_japanese': {}, 'gptj': dict(rotary_dim=8, **GPT),
    'codegen': dict(rotary_dim=4, n_embd=32, n_layer=2, num_attention_heads=4), 'gpt_bigcode': GPT,
    'gpt_neo': dict(num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                    window_size=16),
    'openai_gpt': dict(kind='openai-gpt', **GPT), 'ctrl': dict(dff=64, **GPT),
    'opt': dict(word_embed_proj_dim=32, ffn_dim=64),
    'opt_350m': dict(kind='opt', word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=False),
    'bloom': dict(n_head=2, n_layer=2), 'falcon': dict(alibi=False),
    'falcon_alibi': dict(kind='falcon', alibi=True), 'mpt': dict(d_model=32, n_heads=2, n_layers=2),
    'mamba': dict(state_size=4), 'falcon_mamba': dict(state_size=4),
    'mamba2': dict(num_heads=4, head_dim=16, state_size=8, n_groups=1, expand=2),
    'rwkv': dict(attention_hidden_size=32), 'xlstm': {},
    'bamba': dict(attn_layer_indices=[1], **SSM),
    'jamba': dict(num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1,
                  use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4),
    'zamba2': dict(layers_block_type=['mamba', 'hybrid'], layer_types=['mamba', 'hybrid'],
                   mamba_d_state=8, mamba_headdim=16, n_mamba_heads=4, mamba_ngroups=1,
                   num_mem_blocks=1, use_mem_rope=True),
    'lfm2': dict(layer_types=['conv', 'full_attention'], block_ff_dim=64),
    'olmoe': dict(num_experts=4, num_experts_per_tok=2), 'olmo': {}, 'olmo2': {}, 'olmo3': WINDOW,
    'granite': dict(logits_scaling=4., embedding_multiplier=2.),
    'granitemoe': dict(logits_scaling=4., **LOCAL), 'jetmoe': {},
    'cohere': dict(logit_scale=.25), 'cohere2': dict(logit_scale=.25, **WINDOW), 'stablelm': {},
    'starcoder2': WINDOW, 'smollm3': {}, 'glm': dict(head_dim=16, pad_token_id=0),
    'glm4': dict(head_dim=16, pad_token_id=0), 'nemotron': dict(head_dim=16), 'persimmon': {},
    'biogpt': {}, 'xglm': dict(d_model=32, attention_heads=2, num_layers=2, ffn_dim=64),
    'deepseek_v2': dict(topk_method='greedy', **LATENT), 'deepseek_v3': LATENT,
    'gpt_oss': MIXED | LOCAL, 'ernie4_5': {}, 'hunyuan_v1_dense': dict(head_dim=16),
    'seed_oss': dict(head_dim=16), 'arcee': {}, 'exaone4': dict(head_dim=16, **WINDOW),
    'llama4_text': dict(head_dim=16, num_local_experts=2, intermediate_size_mlp=64,
                        attention_chunk_size=512),
    'helium': dict(head_dim=16), 'diffllama': {}, 'apertus': {}, 'doge': {}, 'bitnet': {},
}
EACH = ('layer_types', 'layers_block_type', 'intermediate_size', 'activation_sparsity_pattern')
ROWS = make_toy(['web_of_lies', 'navigate'], 24, seed=3)
PROMPTS = [format_example(row['source'])['question'] for row in ROWS[:5]] + ['Q: Who?\nA:', 'Hi']


@cache
def tokenizer():
    "A byte-level one of 600 tokens"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=['<|end|>'], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    rows = make_toy(['web_of_lies', 'navigate'], 400, seed=4)
    bpe.train_from_iterator([f"{row['source']}\n{row['rationale']}" for row in rows], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|end|>',
                                   clean_up_tokenization_spaces=False)


def make(name, seed=1, **more):
    "A tiny random model"
    settings = SHAPE | dict(vocab_size=len(tokenizer())) | FAMILIES[name] | more
    kind = settings.pop('kind', name)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    if name == 'rwkv':  # begins with weights that are all alike
        for weight in model.parameters():
            weight.data += .3 * torch.randn_like(weight)
    return model


def defined_loss(student, teacher, rows=ROWS):
    "Forward KL by its definition: from the models' own logits, in float64, one row at a time"
    total = count = 0
    for row in rows:
        example = encode(row, tokenizer())
        ids = torch.tensor([example['input_ids']])
        at = [i - 1 for i, span in enumerate(example['spans']) if span]
        with torch.no_grad():
            p, q = (model(ids, use_cache=False).logits[0, at].double().log_softmax(-1)
                    for model in (teacher, student))
        total += (p.exp() * (p - q)).sum().item()
        count += len(at)
    return total / count


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Snapshot(TrainerCallback):
    "What the student says when its training is over, adapters and all"

    def on_train_end(self, args, state, control, model=None, **kwargs):
        student = model.student.eval()
        with torch.no_grad():
            self.logits = student(input_ids=torch.arange(20)[None], use_cache=False).logits


class StopAtSave(TrainerCallback):
    "A kill after the checkpoint of an update"

    def __init__(self, update):
        self.update = update

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.update:
            raise KeyboardInterrupt


def config(rank=0):
    settings = dict(save_steps=2, eval_steps=2, logging_steps=1)
    return KDConfig(batch_size=4, lr=.02, epochs=1, lora_rank=rank, trainer=settings)


def check_loss(name):
    "`validate` is the definition"
    student, teacher = make(name, 2), make(name, 1)
    loss = defined_loss(student, teacher)
    found = validate(student, teacher, tokenizer(), ROWS)['kl']
    assert abs(found - loss) < 1e-4 * max(1, loss), (found, loss)


def check_saved(name, rank=0):
    "A training comes nearer to its teacher, and what is saved is what was trained"
    student, teacher = make(name, 2), make(name, 1)
    before, said = defined_loss(student, teacher), Snapshot()
    with tempfile.TemporaryDirectory() as out:
        distill(student, teacher, tokenizer(), ROWS, out, config=config(rank), callbacks=[said])
        saved = load_lm(out)[0]
    with torch.no_grad():
        off = saved(torch.arange(20)[None], use_cache=False).logits - said.logits
    assert off.abs().max() < 1e-4 * said.logits.abs().max(), off.abs().max()
    assert defined_loss(saved, teacher) < before


def check_resumed(name, rank=0, dev=0):
    "A training that was stopped and continued leaves the bits of one that was not"
    def train(out, *callbacks):
        distill(make(name, 2), make(name, 1), tokenizer(), ROWS, out, config=config(rank), dev=dev,
                callbacks=callbacks)
        return load_lm(out)[0]

    with tempfile.TemporaryDirectory() as folder:
        whole = train(f'{folder}/whole')
        try:
            train(f'{folder}/parts', StopAtSave(2))
        except KeyboardInterrupt:
            pass
        assert any(Path(f'{folder}/parts').glob('checkpoint-2'))
        assert same_weights(whole, train(f'{folder}/parts'))


def plain_answer(model, prompt, n):
    "Greedy continuation by `generate` of transformers, alone"
    ids = tokenizer()(prompt, return_tensors='pt')['input_ids']
    settings = GenerationConfig(max_new_tokens=n, do_sample=False, eos_token_id=0, pad_token_id=0)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                         generation_config=settings)
    return tokenizer().decode(out[0, ids.shape[1]:], skip_special_tokens=True)


def check_answers(name, n=32):
    "In batches that shrink, every prompt is answered as alone"
    model = make(name)
    generate_batch(model, tokenizer(), PROMPTS[:1], max_new_tokens=1)  # refuses what cannot write
    want = [plain_answer(model, prompt, n) for prompt in PROMPTS]
    pairs = [text[i:i + 2] for text in want for i in range(4, len(text) - 2)]
    stops = [p for p in pairs if 0 < sum(p in text for text in want) < len(want)]
    for stop in (), tuple(stops[:1]):
        found = generate_batch(model, tokenizer(), PROMPTS, max_new_tokens=n, stop=stop)
        assert found == [cut(text, stop) for text in want], stop


def check_layers(name):
    "Some layers say what the whole says with the others skipped, also when saved and read"
    settings = SHAPE | FAMILIES[name]
    deep = {x: 4 for x in ('num_hidden_layers', 'n_layer', 'n_layers', 'num_layers')
            if x in settings}
    deep |= {x: 2 * settings[x] for x in EACH if isinstance(settings.get(x), list)}
    if 'attention_types' in settings:
        deep['attention_types'] = [[['global', 'local'], 2]]
    model = make(name, **deep)
    part, ids = drop_layers(model, [0, 1, 3]), torch.arange(1, 40)[None]
    with tempfile.TemporaryDirectory() as out, torch.no_grad(), skipping(model, [2]):
        part.save_pretrained(out)
        saved = AutoModelForCausalLM.from_pretrained(out)
        want = model(ids, use_cache=False).logits
        for student in part, saved:
            off = (student(ids, use_cache=False).logits - want).abs().max()
            assert off < 1e-4 * want.abs().max(), off
        model.save_pretrained(out)
        half = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    drop_layers(half, [0, 1, 3])  # it says no to a student that computes something else


CHECKS = {
    'loss': check_loss,
    'saved': check_saved,
    'resumed': check_resumed,
    'resumed, best kept': lambda name: check_resumed(name, dev=8),
    'answers': check_answers,
    'some layers': check_layers,
    'adapters saved': lambda name: check_saved(name, rank=4),
    'adapters resumed': lambda name: check_resumed(name, rank=4),
}


def outcome(name, check):
    "'passes', or why not"
    try:
        CHECKS[check](name)
    except InputError as error:
        return f'refused: {error}'
    except Exception as error:
        last = (str(error).strip() or ' ').splitlines()[0]
        return f'{type(error).__name__}: {last}'
    return 'passes'
