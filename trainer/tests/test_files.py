import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.errors import InputError
from trainer.files import SOFTWARE, atomic_write, free_path, link_or_copy, make_place, refuse_to_replace


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
    link_or_copy(last, best)  # again, of what is one file already
    with atomic_write(last, 'w') as file:
        file.write('2')
    assert (last.read_text(), best.read_text()) == ('2', '1')
    assert len(list(tmp_path.iterdir())) == 2


def draw(path, software):
    info = PngInfo()
    info.add_text('Software', software)
    Image.new('RGB', (9, 9)).save(path, pnginfo=info)


def test_only_own_pictures_are_replaced(tmp_path):
    path, second, third = (tmp_path / name for name in ('a.png', 'a_2.png', 'a_3.png'))
    assert free_path(path) == path
    draw(path, SOFTWARE)
    assert free_path(path) == path and free_path(path, taken={path}) == second
    refuse_to_replace(path, overwrite=False)
    draw(path, 'another program')
    second.symlink_to('nowhere')
    assert free_path(path) == third
    with pytest.raises(InputError, match=r'^-o .*a\.png exists: choose another name, or replace it by --overwrite'):
        refuse_to_replace(path, '-o', overwrite=False)
    refuse_to_replace(path, '-o', overwrite=True)
    refuse_to_replace(third, overwrite=False)


def test_names_as_long_as_a_disk_allows(tmp_path):
    path = tmp_path / ('é' * 127)  # 254 bytes
    make_place(path)
    with atomic_write(path, 'w') as file:
        file.write('new')
    link_or_copy(path, tmp_path / ('ü' * 127))
    assert (tmp_path / ('ü' * 127)).read_text() == 'new' and len(list(tmp_path.iterdir())) == 2
