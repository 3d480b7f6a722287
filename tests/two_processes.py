"""Run a function in two forks of this process, as torchrun would start two processes.

Forks, since importing the libraries takes longest. For scripts that a test starts: they load it by
`runpy`, as nothing here is a package.
"""

import os
import signal
import time
import traceback


def launch(work, environment, seconds):
    """Call `work` in two processes, with the variables that torchrun sets; return what failed."""
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ranks = {_forked(work, environment | {"RANK": rank, "LOCAL_RANK": rank}): rank for rank in "01"}
    until, failed = time.monotonic() + seconds, None
    while ranks and failed is None:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            rank = ranks.pop(done)
            failed = f"process {rank}" if status else None
        elif time.monotonic() > until:
            failed = "waiting"
        else:
            time.sleep(0.01)
    for child in ranks:  # which would wait for the one that failed
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return failed


def _forked(work, environment):
    """Start a fork, which has no threads yet; return its id."""
    child = os.fork()
    if child == 0:
        os.environ |= environment
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child
