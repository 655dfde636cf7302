"""The same training between two hosts: network namespaces, each with its address and its name, joined by a cable."""

import os
import shutil
import subprocess
import sys

import pytest
from processes import CREW, ENVIRONMENT, FIFTY, HAS_MPI, assert_same_training, finish


def can_make_hosts():
    if not (HAS_MPI and shutil.which('ip') and shutil.which('unshare') and os.geteuid() == 0):
        return False
    return subprocess.run(['unshare', '--net', '--uts', 'true'], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not can_make_hosts(), reason='needs mpiexec, iproute2 and the right to make network namespaces'),
]
NAMES = [f'crew{os.getpid() % 10000}{side}' for side in 'ab']
ADDRESSES = ['10.77.0.1', '10.77.0.2']


@pytest.fixture
def hosts(tmp_path):
    """Two hosts, and the program with which mpiexec reaches the second one, in the place of ssh."""

    def ip(*words):
        subprocess.run(['ip', *words], check=True, capture_output=True)

    try:
        for name in NAMES:
            ip('netns', 'add', name)
        cable = [f've{name}' for name in NAMES]
        ip('link', 'add', cable[0], 'type', 'veth', 'peer', 'name', cable[1])
        for name, end, address in zip(NAMES, cable, ADDRESSES, strict=True):
            ip('link', 'set', end, 'netns', name)
            ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', end)
            ip('-n', name, 'link', 'set', end, 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        agent = tmp_path / 'reach'
        agent.write_text(
            '#!/bin/sh\nshift\n'  # the host's address: there is only one other
            f'exec ip netns exec {NAMES[1]} unshare --uts sh -c "hostname {NAMES[1]}; $*"\n'
        )
        agent.chmod(0o755)
        yield agent
    finally:
        for name in NAMES:
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True)


@pytest.mark.long
def test_two_hosts_train_as_one_process(hosts, tmp_path):
    finish(0, '-p', tmp_path / 'one', *FIFTY)
    line = [
        *('ip', 'netns', 'exec', NAMES[0], 'unshare', '--uts', 'sh', '-c', f'hostname {NAMES[0]}; exec "$@"', 'sh'),
        *('mpiexec', '--host', ','.join(f'{address}:1' for address in ADDRESSES), '-n', '2'),
        *('--mca', 'plm_rsh_agent', str(hosts), '--mca', 'btl', 'self,tcp'),
        *('--mca', 'btl_tcp_if_include', '10.77.0.0/24', '--mca', 'oob_tcp_if_include', '10.77.0.0/24'),
        *[word for name in ENVIRONMENT if not name.startswith('OMPI') for word in ('-x', name)],
        *(sys.executable, str(CREW), '-p', str(tmp_path / 'two'), *map(str, FIFTY), '--sync-bn'),
        *('--communicator', 'naive'),
    ]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'computing on 2 processes' in done.stdout
    counter = ['ip', 'netns', 'exec', NAMES[1], 'cat', f'/sys/class/net/ve{NAMES[1]}/statistics/rx_bytes']
    assert int(subprocess.run(counter, capture_output=True, text=True, check=True).stdout) > 50 * 6000  # of gradients
    assert_same_training(tmp_path / 'two', tmp_path / 'one', rtol=2e-3)
