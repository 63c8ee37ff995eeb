"""Do the students of `cotkd run why` answer as their teacher, and do they read what they write?

    python tools/made/why_fidelity.py runs/why

COTKD_BBH names the directory of BIG-Bench-Hard. Looks at the first student of each arm that is
asked step by step. Writes cotkd/results/why_fidelity.json: how often an arm agrees with its
teacher, the divergence on texts of its own, and how often its answer stays when its rationale is
cut off or ends in the words of another question.
"""
import argparse
from pathlib import Path

from cotkd.arms import find_arm
from cotkd.bbh import bbh_benchmark
from cotkd.distill import validate
from cotkd.fidelity import agreement_table, carry_table, written_rows
from cotkd.files import write_json
from cotkd.models import load_lm
from cotkd.records import load_results

from collect import RESULTS

TASK = 'tracking_shuffled_objects_three_objects'  # the steps are the answer
TEXTS = 100


def look_at(row, out, benchmark, teacher):
    "One student: nats from its teacher on its own texts; percent of answers that stay"
    student, tokenizer = load_lm(out/row['model'])
    texts = written_rows(out, row, benchmark.items[TASK])[:TEXTS]
    kept = carry_table(student, tokenizer, benchmark, TASK, texts)
    stays = 100 * kept.groupby('share')[['cut', 'ended']].mean()
    own = validate(student, teacher, tokenizer, texts) if texts else {}
    return dict(texts=len(texts), own=own, stays=stays.round(1).to_dict())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='run directory')
    out = parser.parse_args().run
    results, benchmark = load_results(out), bbh_benchmark()
    teacher, _ = load_lm('toy-teacher')
    looks = {}
    for row in results.to_dict('records'):
        first = row['seed'] == 0 and row['task'] == TASK and row['mode'] == 'cot'
        if first and find_arm(row['arm']).trained and find_arm(row['arm']).asked == 'cot':
            looks[row['arm']] = look_at(row, out, benchmark, teacher)
    agreement = agreement_table(out, results).round(2)
    write_json(RESULTS/'why_fidelity.json',
               dict(task=TASK, agreement=agreement.to_dict('index'), looks=looks))


if __name__ == '__main__':
    main()
