"Models that chat: trained and asked through their own template, their thoughts told apart"
import pytest
from families import make, tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from cotkd.distill import distill, validate
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.bbh import Benchmark, extract_answer
from cotkd.files import InputError, read_lines
from cotkd.generate import encode_prompts, end_ids, generate_batch
from cotkd.prompt import ANSWER, chat_end, chat_prompt, cut, encode, format_example, split_thoughts
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>\n{% endfor %}"
REPLY = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PARTS = ("{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{{ p.text }}{% endfor %}"
         "<|im_end|>{% endfor %}" + REPLY)
NO_THOUGHTS = ("{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is defined and "
               "not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
QUESTION = 'Q: Is 3 odd?\nA:'


def chatty(template, special=('<|im_end|>',), prefix=()):
    "A tokenizer with a template; `prefix`: tokens that it puts before every text"
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer().backend_tokenizer).from_str(
            tokenizer().backend_tokenizer.to_str()),
        eos_token='<|end|>', clean_up_tokenization_spaces=False)
    tokens.add_special_tokens({'additional_special_tokens': [*special, *prefix]})
    if prefix:
        tokens.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=' '.join([*prefix, '$A']),
            special_tokens=[(x, tokens.convert_tokens_to_ids(x)) for x in prefix])
    tokens.chat_template = template
    return tokens


@pytest.mark.parametrize('template, shown', [
    (TURNS + REPLY, '<|user|>Q: Is 3 odd?<|im_end|>\n<|assistant|>A:'),
    (PARTS, '<|user|>Q: Is 3 odd?<|im_end|><|assistant|>A:'),
    (TURNS + NO_THOUGHTS,
     '<|user|>Q: Is 3 odd?<|im_end|>\n<|assistant|>\n<think>\n\n</think>\n\nA:'),
    (TURNS + REPLY.replace('<|assistant|>', '<|assistant|><think>\n'),
     '<|user|>Q: Is 3 odd?<|im_end|>\n<|assistant|><think>\n\n</think>\n\nA:')],
    ids=['plain', 'parts', 'thoughts switched off', 'thoughts opened'])
def test_what_is_shown(template, shown):
    tokens = chatty(template)
    assert chat_prompt(QUESTION, tokens) == shown
    assert tokens.decode(encode_prompts(tokens, [shown], chat=True)[0]) == shown


@pytest.mark.parametrize('template', [
    "{{ raise_exception('Only system messages here') }}",
    '{{ messages[0].content.nothing.at.all }}', '{{ 1 + }}', '<|assistant|>'],
    ids=['refuses', 'breaks', 'is none', 'loses the question'])
def test_what_cannot_be_shown_is_one_line(template):
    with pytest.raises(InputError) as told:
        chat_prompt(QUESTION, chatty(template))
    assert 'chat template' in str(told.value) and '\n' not in str(told.value)


@pytest.mark.parametrize('prefix', [['[gMASK]', '<sop>'], ['<s>']], ids=['two tokens', 'one'])
@pytest.mark.parametrize('in_template', [True, False])
def test_prefix_tokens_stand_once(prefix, in_template):
    "As the template has them: the tokenizer adds none of its own"
    begin = ''.join(prefix)
    tokens = chatty((begin if in_template else '') + TURNS + REPLY, prefix=prefix)
    row = make_toy(['web_of_lies'], 1)[0]
    asked = chat_prompt(format_example(row['source'])['question'], tokens)
    ids = encode_prompts(tokens, [asked], chat=True)[0]
    assert tokens.decode(ids).count(begin) == int(in_template)
    trained = encode(row, tokens, chat=True)
    assert trained['input_ids'][:len(ids)] == ids  # asked as it was trained
    assert not any(trained['spans'][:len(ids)]) and all(trained['spans'][len(ids):])


def test_a_reply_ends_as_the_template_ends_it():
    tokens = chatty(TURNS + REPLY)
    assert tokens.convert_ids_to_tokens(chat_end(tokens)) == '<|im_end|>'
    row = make_toy(['web_of_lies'], 1)[0]
    encoded = encode(row, tokens, 'direct', chat=True)
    supervised = [i for i, span in zip(encoded['input_ids'], encoded['spans']) if span]
    assert tokens.decode(supervised) == f" {row['target']}<|im_end|>"
    assert encoded['spans'][-1] == ANSWER


def test_training_lays_rows_out_as_conversations(tmp_path):
    tokens = chatty(TURNS + REPLY)
    rows = make_toy(['web_of_lies'], 16, seed=1)
    teacher, student = make('llama', 1, vocab_size=700), make('llama', 2, vocab_size=700)
    before = validate(student, teacher, tokens, rows, chat=True)['kl']
    config = KDConfig(batch_size=8, lr=.02, epochs=2, chat=True)
    distill(student, teacher, tokens, rows, tmp_path/'chat', config=config)
    assert validate(student, teacher, tokens, rows, chat=True)['kl'] < before
    with pytest.raises(InputError, match='prompt'):  # the same directory for plain text
        distill(student, teacher, tokens, rows, tmp_path/'chat',
                config=KDConfig(batch_size=8, lr=.02, epochs=2))


@pytest.mark.parametrize('text, thoughts, answer', [
    ('(B)', '', '(B)'),
    ('<think>Is it (A)?</think>\n\n(B)', '<think>Is it (A)?</think>\n\n', '(B)'),
    ('so it is.\n</think>\n(B)', 'so it is.\n</think>\n', '(B)'),
    ('<think>on and on', '<think>on and on', ''), ('a < b <think>', '', 'a < b <think>')])
def test_thoughts_are_told_from_the_answer(text, thoughts, answer):
    assert split_thoughts(text) == (thoughts, answer)
    assert cut(text + '\n\nQ: next', ('\n\nQ:',)) == (text if answer else text + '\n\nQ: next')


def test_thoughts_are_not_scored():
    text = '<think>The answer is (A).\nQ:</think>\nSo the answer is (B).'
    for scorer in 'official', 'lm-eval':
        assert extract_answer(text, 'cot', scorer).strip('.') == '(B)'
    assert extract_answer('<think>\n(A)\n</think>\n\n(B)', 'direct') == '(B)'


def test_thoughts_and_ends_are_kept(tmp_path, monkeypatch):
    from cotkd import generate

    def thinks(model, tokens, prompts, *, on_batch, **kwargs):
        said = '<think>Well.</think>\nSo the answer is Yes.'
        on_batch(range(len(prompts)), [generate.Answer(said, False, '<|im_end|>')] * len(prompts))

    monkeypatch.setattr(generate, 'generate_batch', thinks)
    items = [dict(input='Is 3 odd?', target='Yes'), dict(input='Is 4 odd?', target='No')]
    two = Benchmark('two', items={'odd': items})
    evaluate(make('llama', vocab_size=700), chatty(TURNS + REPLY), two,
             Subject('kd', 'm', 'w'), Asking(chat=True), out=tmp_path, progress=False)
    line, _ = read_lines(tmp_path/'predictions'/'kd'/'cot-0-0'/'odd.jsonl')
    assert line == dict(index=0, text='<think>Well.</think>\nSo the answer is Yes.', answer='Yes',
                        correct=True, thoughts='<think>Well.</think>', end='<|im_end|>')


def taught(tokens, text, end, rest):
    "A model that says `text`, then the token `end`, then `rest`"
    import torch
    prompt = encode_prompts(tokens, [QUESTION])[0]

    def ids(x):
        return tokens(x, add_special_tokens=False)['input_ids']

    whole = torch.tensor([prompt + ids(text) + [tokens.convert_tokens_to_ids(end)] + ids(rest)])
    model = make('llama', vocab_size=700, eos_token_id=0, initializer_range=.02).train()
    step = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(whole, labels=whole).loss.backward()
        step.step()
        step.zero_grad()
    return model.eval()


def test_a_token_that_ends_texts_ends_the_answer_though_no_setting_names_it():
    tokens = chatty(TURNS + REPLY, special=('<|endoftext|>', '<|tool|>'))
    model = taught(tokens, ' Yes.', '<|endoftext|>', 'Human: what now?')
    assert tokens.convert_tokens_to_ids('<|endoftext|>') in end_ids(model, tokens)
    found = []
    assert generate_batch(model, tokens, [QUESTION], max_new_tokens=12, stop=(),
                          on_batch=lambda _, answers: found.extend(answers)) == [' Yes.']
    assert found[0].end == '<|endoftext|>' and not found[0].cut_off


def test_another_special_token_stays_visible():
    tokens = chatty(TURNS + REPLY, special=('<|endoftext|>', '<|tool|>'))
    model = taught(tokens, ' Yes.', '<|tool|>', ' No.')
    assert generate_batch(model, tokens, [QUESTION], max_new_tokens=12, stop=(' No',)) == [
        ' Yes.<|tool|>']
