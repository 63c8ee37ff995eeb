"Functions of the tests in processes of their own: to be killed, or several at once"
import contextlib
import multiprocessing
import os
import socket
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

# one process imports the libraries, and all others are forked from it
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['peft', 'transformers.trainer', 'torch.distributed.fsdp',
                               'cotkd.experiment', 'cotkd.cache', 'cotkd.distill'])


@dataclass
class Ended:
    codes: list  # of each process: 0, 1 after an exception, or minus the signal that killed it
    said: str  # by all of them


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _environments(processes):
    "What torchrun says to each of several processes"
    if processes == 1:
        return [{}]
    common = dict(WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    return [common | dict(RANK=rank, LOCAL_RANK=rank) for rank in range(processes)]


def _enter(function, args, environment, file):
    os.environ.update({name: str(x) for name, x in environment.items()})
    with Path(file).open('w', buffering=1) as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                function(*args)
            except BaseException:
                traceback.print_exc()
                os._exit(1)


def call(function, *args, processes=1):
    "A function of a test module, with arguments that can be pickled -> `Ended`"
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for i, environment in enumerate(_environments(processes)):
            given = (function, args, environment, f'{folder}/{i}')
            started.append(SERVER.Process(target=_enter, args=given))
            started[-1].start()
        while alive := [p for p in started if p.is_alive()]:
            wait([p.sentinel for p in alive])
            if any(p.exitcode for p in started):  # the others would wait for it
                for process in alive:
                    process.kill()
        said = ''.join(path.read_text() for path in sorted(Path(folder).iterdir()))
        return Ended([p.exitcode for p in started], said)


def finish(function, *args, processes=1):
    "`call`, and what was printed; all have to end well"
    ended = call(function, *args, processes=processes)
    assert not any(ended.codes), ended.said[-3000:]
    return ended.said
