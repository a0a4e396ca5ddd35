"""The memory of a run's processes."""

import os
import subprocess
import sys
import time

from minidist.run import memory
from minidist.run.memory import MemoryWatch, _with_children, proportional

MIB = 2**20


def test_the_peak_includes_children_and_counts_shared_pages_once() -> None:
    """Two children share 64 MiB that their parent has touched before they were forked, and each has 32 of its own."""
    program = """
import os, sys
shared = bytearray(64 * 2**20)
shared[::4096] = b"x" * (len(shared) // 4096)
children = []
for _ in range(2):
    if os.fork() == 0:
        own = bytearray(32 * 2**20)
        own[::4096] = b"x" * (len(own) // 4096)
        os.write(1, b"ready\\n")
        sys.stdin.read()
        os._exit(0)
os.write(1, b"ready\\n")
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and [parent.stdout.readline() for _ in range(3)] == ["ready\n"] * 3
        processes = _with_children([parent.pid])
        size = sum(map(proportional, processes)) / MIB
        watch = MemoryWatch()
        watch.close()
        parent.kill()
    assert len(processes) == 3 and 128 < size < 160, "64 shared and twice 32, and the interpreters"
    assert watch.peak / MIB > size


def test_a_process_that_is_named_is_watched_though_it_is_no_child() -> None:
    holding = "held = bytearray(50 * 2**20); held[::4096] = b'x' * (len(held) // 4096)"
    code = f"import os, sys; {holding}; os.write(1, b'%d\\n' % os.getpid()); sys.stdin.read()"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()  # its child is an orphan now
        alone, named = MemoryWatch(), MemoryWatch([pid])
        alone.close()
        named.close()
        os.kill(pid, 9)
    assert named.peak - alone.peak > 45 * MIB


def test_a_process_that_has_ended_counts_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert proportional(ended.pid) == 0
    watch = MemoryWatch([ended.pid])
    watch.close()
    assert watch.peak > 0


def test_looking_takes_a_hundredth_of_the_time() -> None:
    watch = MemoryWatch()
    time.sleep(2.5)
    watch._ended.set()
    watch._thread.join()
    looked = watch.spent_s
    assert 0 < looked < 2 * memory.SHARE * 2.5
