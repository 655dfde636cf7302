import pytest

from trainer.data.augmentation import Sizes, training_size
from trainer.data.augmentation.sizes import read_sizes
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.errors import InputError


def test_default_is_the_experiment_of_122_px():
    assert Sizes.of() == Sizes(crop=122, side_min=124, side_max=132, test=128, test_crop=128)


def test_sides_follow_the_crop():
    assert Sizes.of(64) == Sizes(crop=64, side_min=66, side_max=74, test=70, test_crop=70)


def test_small_set_tests_images_as_they_are():
    assert Sizes.of(32) == Sizes(crop=32, side_min=32, side_max=36, test=32, test_crop=32)


@pytest.mark.parametrize('crop', [8, 32, 122, 1024])
def test_network_of_fixed_size_is_tested_at_its_training_size(crop):
    sizes = Sizes.of(crop, fixed_size=True)
    assert sizes.test_crop == crop
    assert sizes._replace(test_crop=sizes.test) == Sizes.of(crop)


@pytest.mark.parametrize('crop', [-1, 0, 7, 1025])
def test_size_outside_the_range_is_named(crop):
    with pytest.raises(InputError, match=rf'size {crop} is outside 8 \.\. 1024 px'):
        Sizes.of(crop)


def test_training_begins_with_smaller_sizes():
    sizes = Sizes.of(122, smaller=read_sizes('64=2,96=3'))
    assert [sizes.at(epoch).crop for epoch in range(5)] == [64, 64, 96, 122, 122]
    assert sizes.at(1) == Sizes.of(64)
    assert sizes.at(4) is sizes


@pytest.mark.parametrize('text', ['64', '64=a', '64=2,96=2', '64=3,96=2', '64=0', '64=1=2', ','])
def test_other_forms_of_sizes_are_refused(text):
    with pytest.raises(InputError, match='--progressive_size is'):
        read_sizes(text)


def test_a_network_of_fixed_size_takes_no_smaller_images():
    with pytest.raises(InputError, match='images of any size'):
        Sizes.of(122, fixed_size=True, smaller=((64, 2),))


def test_the_test_view_tells_the_size_of_the_training():
    view = PREPROCESSINGS['experiment']
    sizes = [size for size in range(8, 1025) if size != 26]  # which is tested at 32 px, as the small set is
    assert [training_size(Sizes.of(size).preprocessing(view)) for size in sizes] == sizes
    assert [training_size(Sizes.of(size, fixed_size=True).preprocessing(view)) for size in sizes] == sizes
    assert training_size(PREPROCESSINGS['torchvision']) == 224
