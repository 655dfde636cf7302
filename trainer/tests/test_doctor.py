"""What `python -m trainer.doctor` finds, with and without each part."""

import sys
from types import SimpleNamespace

import pytest

from trainer import doctor, engine
from trainer.doctor import Finding
from trainer.engine import cores
from trainer.engine.cores import Usage
from trainer.engine.cuda import cudnn
from trainer.engine.errors import EngineError


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_it_reports_and_concludes(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    words = ['Python', 'Chainer', 'NumPy', 'oneDNN', 'usable cores', 'CuPy', '-g -1 (CPU)', '-g 0 (GPU)']
    for word in words + ['instructions'] * engine.is_available():
        assert word in out


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)  # its import fails
    monkeypatch.setattr(engine, 'library', lambda: raise_(EngineError('oneDNN is missing: pip install onednn-cpu-tbb')))
    found = by_name(doctor.examine())
    assert 'make install EXTRAS=cuda12' in found['CuPy'].advice
    assert 'pip install onednn-cpu-tbb' in found['oneDNN'].advice
    assert doctor.conclude(list(found.values())) == [
        '-g -1 (CPU): plain Chainer, some ten times slower',
        '-g 0 (GPU): no usable GPU',
    ]


@pytest.mark.parametrize(
    ('n_bound', 'quota', 'threads', 'found', 'advice'),
    [
        (64, None, None, '64 of 64', ''),
        (8, None, None, '8 of 64 (bound to 8)', ''),
        (64, 1.5, None, '2 of 64 (CPU quota 1.5)', ''),
        (8, 1.0, '1', '1 of 64 (bound to 8, CPU quota 1)', ''),
        (64, None, '4', '64 of 64, 4 threads by OMP_NUM_THREADS', ''),
        (8, 4.0, '64', '4 of 64 (bound to 8, CPU quota 4), 64 threads by OMP_NUM_THREADS', 'set it to 4 or less'),
    ],
)
def test_usable_cores_and_why(monkeypatch, n_bound, quota, threads, found, advice):
    monkeypatch.setattr('os.cpu_count', lambda: 64)
    for module in doctor, cores:
        monkeypatch.setattr(module, 'bound_cores', lambda: set(range(n_bound)))
        monkeypatch.setattr(module, 'cpu_quota', lambda *_: quota)
    if threads is None:
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    else:
        monkeypatch.setenv('OMP_NUM_THREADS', threads)
    (finding,) = doctor._examine_cores()
    assert finding.found == found
    assert finding.advice.endswith(advice)
    assert bool(finding.advice) == bool(advice)


@pytest.mark.parametrize(
    ('taken', 'found', 'is_busy'),
    [(0.04, 'keep 0.0 of these cores busy', False), (1.04, 'keep 1.0 of these cores busy', True)],
)
def test_other_processes(monkeypatch, taken, found, is_busy):
    usage = Usage(taken, 0.0)  # this process sleeps, and so does not wait for a core
    monkeypatch.setattr(doctor, 'Contention', lambda: SimpleNamespace(measure=lambda: usage))
    (finding,) = doctor._examine_contention()
    assert finding.found == found
    assert finding.advice.startswith('a run beside them takes up to twice as long') == is_busy


def test_a_system_that_does_not_tell_of_other_processes_gets_no_line(monkeypatch):
    monkeypatch.setattr(doctor, 'Contention', lambda: SimpleNamespace(measure=lambda: None))
    assert list(doctor._examine_contention()) == []


def test_cudnn_is_asked_for_its_version(monkeypatch):
    monkeypatch.setattr(cudnn, 'load', lambda: raise_(EngineError('cuDNN is missing: pip install x')))
    assert by_name(doctor._examine_cudnn())['cuDNN'].advice == 'cuDNN is missing: pip install x'
    monkeypatch.setattr(cudnn, 'load', lambda: None)
    monkeypatch.setattr(cudnn, 'version', lambda: 'cuDNN 9.19.0')
    assert by_name(doctor._examine_cudnn())['cuDNN'].found == '9.19.0'


@pytest.mark.parametrize(
    ('faulty', 'conclusion'),
    [(None, 'cuDNN and captured iterations, fast'), ('cuDNN', 'plain Chainer on CuPy, slow')],
)
def test_conclusions_about_a_gpu(faulty, conclusion):
    names = 'oneDNN', 'CuPy', 'GPU 0', 'cuDNN'
    findings = [Finding(name, 'found', 'install it' if name == faulty else '') for name in names]
    assert doctor.conclude(findings)[1] == f'-g 0 (GPU): {conclusion}'


def test_a_line_says_what_was_found_or_what_to_do():
    assert str(Finding('CuPy', '14.2.0')) == 'ok  CuPy                   14.2.0'
    assert str(Finding('CuPy', '', 'install it')) == '--  CuPy                   not found\n      install it'


def raise_(error):
    raise error
