"Call a function of a test module in several processes at once, as torchrun does"
import importlib
import os
import subprocess
import sys


def launch(function, n, *texts):
    "A function of a module in this directory, with these texts: how the processes ended"
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
               '--nproc_per_node', str(n), __file__, function.__module__, function.__name__]
    return subprocess.run([*command, *map(str, texts)], capture_output=True, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS='1'))


def finish(function, n, *texts):
    "`launch`, and what was printed; all processes have to end well"
    done = launch(function, n, *texts)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


if __name__ == '__main__':
    module, name, *given = sys.argv[1:]
    getattr(importlib.import_module(module), name)(*given)
