"""What a file of weights says of itself comes back as it was, and what it cannot say is refused."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import InputError
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

WORDS = st.text(min_size=1, max_size=20)


@settings(deadline=None)
@given(
    st.none() | WORDS,
    st.none() | st.sampled_from(sorted(PREPROCESSINGS)),
    st.none() | st.lists(WORDS, min_size=1, max_size=6),
    st.integers(1, 64),
)
def test_round_trip(network, preprocessing, classes, extra):
    view = None if preprocessing is None else PREPROCESSINGS[preprocessing]
    if view is not None:
        view = dataclasses.replace(view, side=view.side + extra)
    names = None if classes is None else tuple(classes)
    metadata = Metadata(network, None if names is None else len(names), view, names)
    text = metadata.dumps()
    assert '\n' not in text
    assert Metadata.loads(text) == metadata


def test_what_is_not_known_is_left_out_and_more_does_not_matter():
    assert Metadata().dumps() == '{}'
    assert Metadata.loads('{"network": "a", "colour": [1]}') == Metadata('a')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'not a text'),
        ('', 'not JSON'),
        ('[' * 100_000, 'not JSON'),
        ('[]', 'expected an object'),
        ('{"network": 3}', 'name the network'),
        ('{"n_class": 0}', 'say 0 classes'),
        ('{"n_class": true}', 'say True classes'),
        ('{"n_class": 1e9}', 'classes, expected 1'),
        ('{"classes": "abc"}', 'not a list of texts'),
        ('{"classes": ["a", 1]}', 'not a list of texts'),
        ('{"classes": ["a"], "n_class": 2}', 'name 1 classes, but say 2'),
        ('{"preprocessing": {"name": "caffe"}}', 'is not a preprocessing'),
        (json.dumps({'preprocessing': PREPROCESSINGS['caffe'].as_dict() | {'crop': 1 << 40}}), 'crop'),
        (json.dumps({'preprocessing': PREPROCESSINGS['caffe'].as_dict() | {'std': [0, 0, 0]}}), 'std'),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Metadata.loads(text)
