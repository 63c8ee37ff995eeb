"What `accelerate launch` makes of its options, without starting anything"
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env
from torch.distributed.run import get_args_parser


def understood(words):
    "Options, those of its file among them; words: all behind `accelerate launch`"
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def environment(words):
    "What each process is told about sharding and precision"
    told = prepare_multi_gpu_env(understood([*words, '--main_process_port', '0']))
    return {name: x for name, x in told.items() if name.startswith(('ACCELERATE_', 'FSDP_'))}


def torchrun_options(words):
    "What it hands to torchrun, which it starts"
    options = understood(words)
    prepare_multi_gpu_env(options)
    return _filter_args(options, get_args_parser(), ['--training_script', 'cotkd'])
