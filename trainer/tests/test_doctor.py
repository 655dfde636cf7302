"""What `python -m trainer.doctor` finds, with and without each part."""

import sys

import pytest

from trainer import doctor, engine
from trainer.doctor import Finding
from trainer.engine.cuda import cudnn
from trainer.engine.errors import EngineError


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_it_reports_and_concludes(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for word in ('Python', 'Chainer', 'NumPy', 'CPU', 'oneDNN', 'CuPy', '-g -1 (CPU)', '-g 0 (GPU)'):
        assert word in out


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)  # its import fails
    monkeypatch.setattr(engine, 'library', lambda: raise_(EngineError('oneDNN is missing: pip install onednn-cpu-tbb')))
    found = by_name(doctor.examine())
    assert 'make install EXTRAS=cuda12' in found['CuPy'].advice
    assert 'pip install onednn-cpu-tbb' in found['oneDNN'].advice
    assert doctor.conclude(list(found.values())) == [
        '-g -1 (CPU): plain Chainer, some ten times slower',
        '-g 0 (GPU): none to be used',
    ]


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
