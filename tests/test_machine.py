import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from harvest.machine import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def step():
    return sum(torch.ones(size << 18).mul_(2)[0] for size in (1, 40, 9, 70))  # mebibytes of fp32
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    def page_faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert 10 * page_faults("kept") < page_faults("given back")
