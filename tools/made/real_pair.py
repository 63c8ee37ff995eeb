"""A real pair of the paper's family, start to finish: Qwen2.5-Coder 1.5B teaches 0.5B.

    python tools/made/real_pair.py run --teacher DIR --student DIR       # hours; stop it any time
    python tools/made/real_pair.py in-domain --teacher DIR --student DIR
    python tools/made/real_pair.py lens --teacher DIR --student DIR
    python tools/made/real_pair.py collect

Both are the Instruct models. COTKD_DATA and COTKD_BBH name the directories of rationales and of
BIG-Bench-Hard. `run` is the preset `qwen2.5-coder` with fewer rows and a sample of each task, as
two CPU cores allow. `in-domain` asks every model held-out questions of the tasks they were trained
on, without examples. Both can be stopped; the same command continues. `lens` lets all of them read
one example of our own, with its rationale and without, and `collect` writes what the study shows
to cotkd/results: numbers and 0/1 strings, no text of a benchmark.

On a CPU most of an update's tensors are large and short-lived. Where glibc keeps their memory, an
update took 22 s instead of 38 (KD+CoT) and 16 s instead of 31 (KD), and up to 19 GB instead of 11:

    MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1
"""
import argparse
import os
from pathlib import Path

from cotkd.bbh import OFFICIAL_STOPS, Benchmark, Scorer, bbh_benchmark, first_sentence
from cotkd.bbh import official_answer
from cotkd.data import load_cot
from cotkd.evaluate import Asking, Subject, evaluate, rescore
from cotkd.experiment import configure, members, place_of, run, untrained
from cotkd.files import write_json
from cotkd.lens import read_tokens
from cotkd.models import load_lm
from cotkd.names import trained_from
from cotkd.prompt import MODES
from cotkd.records import read_results

from collect import RESULTS, keep_results, keep_run

SETTINGS = dict(rows='800', dev='.003', epochs='1', limit='15', other_prompt='15',
                max_new_tokens='320', also='')
TRAINER = dict(eval_steps=.25, save_steps=.25)
TASKS = ('gsm8k', 'creak', 'aqua', 'strategyqa')  # of cot_dev.jsonl
PER_TASK = 100
ROOM = 200  # tokens of an answer with its rationale
EXAMPLE = dict(
    source='A shop sells pens in boxes of 12. Mia buys 3 boxes and gives 7 pens to her brother. '
           'How many pens does she keep?',
    rationale='Three boxes hold 3 * 12 = 36 pens. She gives 7 of them away, so she keeps '
              '36 - 7 = 29 pens.',
    target='29')


# the official answer is a whole line, and a model that talks on behind its answer is wrong
FIRST_SENTENCE = Scorer('first-sentence', OFFICIAL_STOPS,
                        lambda text, mode: first_sentence(official_answer(text, mode)))


def data(name):
    return Path(os.environ['COTKD_DATA'])/name


def experiment(args):
    return configure('qwen2.5-coder', SETTINGS | dict(
        teacher=args.teacher, student=args.student, data=str(data('cot_train.jsonl'))))


def train_and_ask(args):
    run(experiment(args), args.out, preset='qwen2.5-coder', trainer=TRAINER)


def held_out_questions():
    "The same for every model: a seeded sample of each task"
    rows = load_cot(data('cot_dev.jsonl')).shuffle(seed=0)
    items = {task: [] for task in TASKS}
    for row in rows:
        found = items[row['task']]
        if len(found) < PER_TASK:
            found.append(dict(input=row['source'], target=row['target']))
    return Benchmark('cot_dev', 'Held-out questions of the training tasks', items=items)


def trained(args):
    "(member, its directory) of teacher, base student and the students that there are"
    pair = experiment(args)
    waiting = untrained(pair, args.out)
    for member in members(pair, args.out, seeds=1):
        if member in waiting:
            print(f'{member.key} is not trained yet')
        else:
            yield member, place_of(member, args.out)


def ask_in_domain(args):
    benchmark = held_out_questions()
    for member, place in trained(args):
        model, tokenizer = load_lm(place)
        subject = Subject(member.arm.name, member.name, start=trained_from(place))
        for mode in MODES:
            asking = Asking(mode=mode, max_new_tokens=ROOM if mode == 'cot' else None)
            evaluate(model, tokenizer, benchmark, subject, asking, out=Path(args.out)/'in_domain')


def read_example(args):
    models = {}
    for member, place in trained(args):
        models[member.arm.name], tokenizer = load_lm(place)
    teacher = models.pop('teacher')
    found = {}
    for mode in MODES:
        lens = read_tokens(EXAMPLE, tokenizer, teacher, models, mode, k=4)
        found[mode] = vars(lens) | dict(kl=lens.kl.round(4).to_dict('list'))
    write_json(RESULTS/'real_pair_lens.json', found)


def read_again(place, benchmark):
    "The texts of all that was asked step by step, by the first sentence of their answers"
    return [rescore(place, row, benchmark.items[row['task']], FIRST_SENTENCE)
            for row in read_results(place) if row['mode'] == 'cot']


def collect(args):
    "Numbers and 0/1 strings"
    out = Path(args.out)
    keep_results(read_results(out), 'real_pair_bbh')
    keep_results(read_again(out, bbh_benchmark()), 'real_pair_bbh_first-sentence')
    keep_results(read_results(out/'in_domain'), 'real_pair_in_domain')
    keep_run(out, 'real_pair')


STEPS = {'run': train_and_ask, 'in-domain': ask_in_domain, 'lens': read_example,
         'collect': collect}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', choices=STEPS)
    parser.add_argument('--teacher', help='directory of Qwen2.5-Coder-1.5B-Instruct')
    parser.add_argument('--student', help='directory of Qwen2.5-Coder-0.5B-Instruct')
    parser.add_argument('--out', default='runs/real_pair', help='run directory')
    args = parser.parse_args()
    if args.step != 'collect' and not (args.teacher and args.student):
        parser.error(f'{args.step} needs --teacher and --student')
    STEPS[args.step](args)


if __name__ == '__main__':
    main()
