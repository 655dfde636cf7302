import pytest

from trainer.files import atomic_write, link_or_copy


def test_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(OSError, match='full'), atomic_write(path, 'w') as file:
        file.write('half of the new')
        raise OSError('full')
    assert path.read_text() == 'old'
    with atomic_write(path, 'w') as file:
        file.write('new')
    assert path.read_text() == 'new'
    assert [child.name for child in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('has_links', [True, False])
def test_second_name_survives_the_first_ones_replacement(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr('os.link', lambda *_: (_ for _ in ()).throw(OSError))
    last, best = tmp_path / 'last', tmp_path / 'best'
    last.write_text('1')
    link_or_copy(last, best)
    with atomic_write(last, 'w') as file:
        file.write('2')
    assert (last.read_text(), best.read_text()) == ('2', '1')
