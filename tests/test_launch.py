"What `cotkd launch-config` writes, and every launcher that the cluster page starts"
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import launchers
import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from cotkd.cli import main, parser, read_choice, trainer_settings

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/'cotkd/assets/slurm/run.sbatch'
PAGE = ROOT/'nbs/cluster.md'
BLOCKS = re.findall(r'```sh\n(.*?)```', PAGE.read_text('utf-8'), re.S)


def written(tmp_path, *words):
    "The file that it writes, and what `accelerate launch` reads from it"
    file = tmp_path/'launch.yaml'
    assert main(['launch-config', *words, '--out', str(file)]) is None
    return file, launchers.understood(['--config_file', str(file), '--no_python', 'cotkd'])


# --- files for accelerate

def test_copies_on_one_machine(tmp_path):
    file, options = written(tmp_path, 'ddp', '--processes', '8')
    assert options.multi_gpu and not options.use_fsdp
    assert (options.num_processes, options.num_machines) == (8, 1)
    told = launchers.environment(['--config_file', str(file), 'cotkd'])
    assert told['ACCELERATE_MIXED_PRECISION'] == 'no' and 'ACCELERATE_USE_FSDP' not in told


def test_shards(tmp_path):
    "Their training is in `test_processes.py`"
    file, options = written(tmp_path, 'fsdp2', '--processes', '4')
    assert options.use_fsdp and not options.multi_gpu and not options.use_deepspeed
    told = launchers.environment(['--config_file', str(file), 'cotkd'])
    assert told['ACCELERATE_USE_FSDP'] == 'true' and told['FSDP_VERSION'] == '2'
    assert told['FSDP_STATE_DICT_TYPE'] == 'FULL_STATE_DICT'
    assert told['FSDP_CPU_RAM_EFFICIENT_LOADING'] == 'false'


def test_several_machines_need_no_ranks(tmp_path):
    "By the line that stands at the top of the file"
    file, _ = written(tmp_path, 'ddp', '--machines', '2', '--processes', '8')
    line = file.read_text().splitlines()[0].replace('FILE', str(file)).replace('FIRST', 'node1')
    words = shlex.split(line)[1:]
    assert words[:2] == ['accelerate', 'launch'] and words[-2:] == ['run', 'PRESET']
    given = launchers.torchrun_options(words[2:])
    assert (given.nnodes, given.nproc_per_node) == ('2', '4')
    assert (given.rdzv_backend, given.rdzv_endpoint) == ('c10d', 'node1:29500')


def test_gpus_that_are_here_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    assert written(tmp_path, 'ddp')[1].num_processes == 4
    assert written(tmp_path, 'ddp', '--machines', '3')[1].num_processes == 12


def test_it_is_shown_unless_it_is_written(tmp_path, capsys):
    file, _ = written(tmp_path, 'fsdp2', '--processes', '2')
    assert capsys.readouterr().out == ''
    main(['launch-config', 'fsdp2', '--processes', '2'])
    shown = capsys.readouterr().out
    assert shown == file.read_text() and yaml.safe_load(shown)['num_processes'] == 2
    main(['launch-config', 'slurm'])
    assert capsys.readouterr().out == SCRIPT.read_text('utf-8')


@pytest.mark.parametrize('words, said', [
    (['deepspeed'], ['deepspeed', 'fsdp2', 'ddp']),
    (['dpp'], ["'dpp'", 'ddp, fsdp2, slurm']),
    (['ddp'], ['no GPU', '--processes']),
    (['ddp', '--processes', '0'], ['--processes 0']),
    (['ddp', '--processes', '3', '--machines', '2'], ['--processes 3', '--machines 2']),
    (['ddp', '--processes', '3', '--machines', '0'], ['--machines 0', '1 or more']),
    (['slurm', '--processes', '8'], ['sbatch --nodes', '--gpus-per-node']),
], ids=' '.join)
def test_a_mistake_is_one_line(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert main(['launch-config', *words, '--out', str(tmp_path/'file')]) == 2
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and all(text in line for text in said)
    assert not any(tmp_path.iterdir())


# --- what the page and the script start, with stand-ins that write down how they were called

STAND_IN = f"""#!{sys.executable} -S
import json, os, sys
with open(os.environ['CALLS'], 'a') as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + '\\n')
"""
SRUN = STAND_IN + """
rest = sys.argv[1:]
while rest[0].startswith('--'):
    rest.pop(0)
os.execvp(rest[0], rest)
"""
SCONTROL = STAND_IN + """
assert sys.argv[1:] == ['show', 'hostnames', 'node[1-2]'], sys.argv
print('node1', 'node2', sep='\\n')
"""
STAND_INS = dict(cotkd=STAND_IN, accelerate=STAND_IN, torchrun=STAND_IN, sbatch=STAND_IN, srun=SRUN,
                 scontrol=SCONTROL)
NODES = dict(SLURM_JOB_ID='123456', SLURM_JOB_NODELIST='node[1-2]', SLURM_NNODES='2',
             SLURM_GPUS_ON_NODE='4', SLURM_CPUS_PER_TASK='16', SLURM_ARRAY_TASK_ID='3')
OPTIONS = {  # of sbatch and srun that are used here -> what they take; None: nothing
    '--array': r'\d+-\d+', '--cpus-per-task': r'\d+', '--gpus-per-node': r'(\w+:)?\d+',
    '--job-name': r'\w+', '--nodes': r'\d+(-\d+)?', '--ntasks-per-node': r'\d+',
    '--open-mode': 'append|truncate', '--requeue': None, '--time': r'(\d+-)?\d+:\d\d:\d\d'}


class Calls:
    "Of a script, in the order they were made"

    def __init__(self, folder):
        self.folder, self.log = folder, folder/'calls'
        (folder/'bin').mkdir()
        for name, text in STAND_INS.items():
            (folder/'bin'/name).write_text(text)
            (folder/'bin'/name).chmod(0o755)

    def run(self, script, *words):
        self.log.write_text('')
        path = f"{self.folder/'bin'}:/usr/bin:/bin"
        given = NODES | dict(PATH=path, CALLS=self.log, HOME=self.folder, SHARED=self.folder,
                             HOST='node1')
        return subprocess.run(['bash', script, *words], capture_output=True, text=True,
                              cwd=self.folder, env={name: str(x) for name, x in given.items()})

    @property
    def made(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Calls(tmp_path)


def check_slurm_options(words):
    for word in words:
        name, _, value = word.partition('=')
        assert name in OPTIONS, word
        assert re.fullmatch(OPTIONS[name] or '', value), word


def directives(script):
    return re.findall(r'^#SBATCH +(\S+)', script, re.M)


def check_command(words):
    "One of ours: its options are known; its file is written, its plan made"
    args, rest = parser().parse_known_args(words)
    assert not rest or words[0] in ('run', 'distill'), rest
    trainer_settings(rest)
    if words[0] == 'launch-config':
        assert main(words) is None
    if words[0] in ('run', 'plan'):
        read_choice(args).experiment()
        dry = [] if words[0] == 'plan' or '--dry-run' in words else ['--dry-run']
        assert main([*words, *dry]) is None


def check_call(words):
    name, *words = words
    if name == 'cotkd':
        check_command(words)
    elif name == 'accelerate':
        assert words[0] == 'launch'
        options = launchers.understood(words[1:])
        assert options.no_python and options.training_script == 'cotkd'
        check_command(options.training_script_args)
    elif name == 'torchrun':
        options = get_args_parser().parse_args(words)
        assert options.no_python and options.training_script == 'cotkd'
        check_command(options.training_script_args)
    else:
        assert name == 'sbatch'
        script = words.index('run.sbatch')
        check_slurm_options(words[:script])
        assert Path('run.sbatch').read_text('utf-8') == SCRIPT.read_text('utf-8')
        check_command(words[script + 1:])


def test_the_commands_of_the_page(calls, capsys):
    "Its blocks, one after the other: a later one reads the files of an earlier one"
    assert len(BLOCKS) > 8
    for block in BLOCKS:
        (calls.folder/'block').write_text(block)
        done = calls.run('block')
        assert not done.returncode and not done.stderr, done.stderr
        lines = block.replace('\\\n', ' ').splitlines()
        assert len(calls.made) == len([x for x in lines if x and not x.startswith('#')])
        check_slurm_options(directives(block))
        for words in calls.made:
            check_call(words)


def test_the_slurm_script(calls, capsys):
    "Two nodes of four GPUs meet at the first, and each starts four processes of the command"
    given = ['run', 'qwen1.5', '--out', f'{calls.folder}/a run', '--set', 'rows=4000']
    done = calls.run(SCRIPT, *given)
    assert not done.returncode and not done.stderr, done.stderr
    hostnames, config, step, launch = calls.made
    assert hostnames[0] == 'scontrol'
    assert step[0] == 'srun' and step[2:] == launch
    check_slurm_options([*directives(SCRIPT.read_text('utf-8')), step[1]])
    check_call(config)
    check_call(launch)
    started = launchers.torchrun_options(launch[2:])
    assert (started.nnodes, started.nproc_per_node) == ('2', '4')
    assert (started.rdzv_backend, started.rdzv_endpoint) == ('c10d', 'node1:23456')
    assert launchers.understood(launch[2:]).training_script_args == given


def test_both_kinds_that_the_script_knows(calls, tmp_path):
    shards = tmp_path/'shards.sbatch'
    shards.write_text(SCRIPT.read_text('utf-8').replace('kind=ddp', 'kind=fsdp2'))
    assert not calls.run(shards, 'run').returncode
    check_call(calls.made[1])
    assert launchers.understood(calls.made[-1][2:]).use_fsdp


def test_the_script_wants_a_command(calls):
    done = calls.run(SCRIPT)
    assert done.returncode and 'expected a command of cotkd' in done.stderr and not calls.made


@pytest.mark.parametrize('script', [SCRIPT.read_text('utf-8'), *BLOCKS])
def test_shell_syntax(script):
    done = subprocess.run(['bash', '-n'], input=script, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr
