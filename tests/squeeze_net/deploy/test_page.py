"""The page: what it is built from and how large it is, and that it answers in node and Chromium as Python does."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, find_chromium, served
from deployed import DATA, PUBLISHED, ROOT, cifar_images, needs_data, photos, random_weights
from PIL import Image, ImageCms

from squeeze_net import infer, weights
from squeeze_net.classifier import Classifier
from squeeze_net.deploy.__main__ import main
from squeeze_net.deploy.page import build
from trainer.data import images

SMALL = ROOT / 'results/compression/small.sqz'
FILES = 'index.html', 'squeezenet.wasm', 'model.sqz'
needs_node = pytest.mark.skipif(shutil.which('node') is None, reason='no node')
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason='no Chromium')


def deploy(source, folder, *flags):
    assert main([str(source), '-o', str(folder), '--only', 'page', *flags]) == 0
    return folder


@pytest.fixture(scope='module')
def sites(tmp_path_factory):
    """The page of the small archive, as three files and as one."""
    folder = tmp_path_factory.mktemp('sites')
    deploy(SMALL, folder / 'three')
    deploy(SMALL, folder / 'one', '--single_file')
    return folder


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    return deploy(PUBLISHED, tmp_path_factory.mktemp('published'), '--preprocess', 'caffe')


@pytest.fixture(scope='module')
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope='module')
def cat(tmp_path_factory):
    """A real photo as a JPEG of another size; of anything, without the data."""
    path = tmp_path_factory.mktemp('cat') / 'cat.jpg'
    image = cifar_images(1)[0] if DATA.is_dir() else drawn(32, 32)
    image.resize((80, 60), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def drawn(width, height, mode='RGB'):
    shape = height, width, len(mode)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


# ---- what is written ----


@pytest.mark.slow
def test_the_program_is_what_the_c_file_compiles_to(tmp_path, monkeypatch):
    pytest.importorskip('ziglang', reason='no compiler: the extra `page` is not installed')
    source = tmp_path / 'elsewhere' / 'squeezenet.c'
    shutil.copytree(build.SOURCE.parent, source.parent)
    monkeypatch.setattr(build, 'SOURCE', source)
    build.build(tmp_path / 'built.wasm')
    built, committed = (tmp_path / 'built.wasm').read_bytes(), build.PROGRAM.read_bytes()
    assert built == committed, 'run python -m squeeze_net.deploy.page.build'


def test_what_a_browser_loads_is_small(sites):
    sizes = {name: (sites / 'three' / name).stat().st_size for name in FILES}
    assert sum(sizes.values()) <= 200_000 and sizes['squeezenet.wasm'] <= 60_000
    assert sizes['model.sqz'] == SMALL.stat().st_size
    single = (sites / 'one' / 'index.html').stat().st_size
    assert single <= 300_000 and {path.name for path in (sites / 'one').iterdir()} == {'index.html', 'README.md'}
    for folder in ('one', 'three'):
        assert '//' + 'cdn' not in (text := (sites / folder / 'index.html').read_text()) and 'http' + '://' not in text
        assert '# A page' in (sites / folder / 'README.md').read_text()


def test_forms_share_the_archive(tmp_path):
    pytest.importorskip('onnx')
    weights.write(random_weights(), path := tmp_path / 'weights.npz')
    assert main([str(path), '-o', str(tmp_path / 'both'), '--only', 'c,page']) == 0
    assert {*FILES, 'squeezenet.c', 'squeezenet.h'} < {place.name for place in (tmp_path / 'both').iterdir()}


# ---- the program, in node ----


def compare_in_node(archive, pictures, folder):
    """Cut, logits and the five best against Python's of the same pixels."""
    words = []
    for i, image in enumerate(pictures):
        (path := folder / f'{i}.rgb').write_bytes(image.tobytes())
        words += [path, *image.size]
    command = ['node', Path(__file__).with_name('classify.mjs'), build.PROGRAM, archive, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    classifier = Classifier.open(archive, batch=1)
    for image, line in zip(pictures, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        expected = classifier.preprocessing.cut(image)
        cut = np.frombuffer(base64.b64decode(found['cut']), np.uint8).reshape(expected.shape)
        assert np.abs(cut.astype(int) - expected).max() <= 1
        logits = classifier(cut.transpose(2, 0, 1)[None])[0]
        np.testing.assert_allclose(found['logits'], logits, atol=1e-3)
        assert {*np.argsort(found['logits'])[-5:]} == {*np.argsort(logits)[-5:]}
        assert sum(found['probabilities']) == pytest.approx(1, abs=1e-4)


@pytest.mark.long
@needs_node
def test_logits_of_the_experiment(tmp_path):
    real = cifar_images(3) if DATA.is_dir() else []
    compare_in_node(SMALL, [*real, drawn(32, 32), drawn(200, 90)], tmp_path)


@needs_node
@needs_data
def test_logits_of_published_weights(tmp_path, published):
    compare_in_node(published / 'model.sqz', [Image.open(path).convert('RGB') for path in photos()], tmp_path)


@needs_node
@needs_data
@pytest.mark.long
@pytest.mark.parametrize(
    'file', ['squeezenet_v1.0.caffemodel', 'squeezenet_v1.1.caffemodel', 'compressed_SqueezeNet.net']
)
def test_logits_of_all_photos(tmp_path, file):
    deploy(DATA / 'weights' / file, tmp_path / 'page', '--preprocess', 'caffe')
    compare_in_node(tmp_path / 'page/model.sqz', [Image.open(path).convert('RGB') for path in photos(100)], tmp_path)


@needs_node
@needs_data
@pytest.mark.long
def test_logits_of_1000_cifar_images(tmp_path):
    compare_in_node(SMALL, cifar_images(1000), tmp_path)


@needs_node
def test_faults_of_archives_in_node(tmp_path):
    (tmp_path / 'cut.sqz').write_bytes(SMALL.read_bytes()[:-1])
    with pytest.raises(AssertionError, match='The checksum of the archive is wrong'):
        compare_in_node(tmp_path / 'cut.sqz', [], tmp_path)


# ---- the page, in Chromium ----

IS_LOADED = "!document.getElementById('choose').disabled"
NAMES = "[...document.querySelectorAll('#best li span:first-child')].map((name) => name.textContent)"
FAULT = "document.getElementById('fault').textContent"
NO_PICTURE = '{} cannot be read as a picture, or is too large for this browser: give a JPEG, PNG, WebP or GIF.'
CUT = """(() => {
    const canvas = document.getElementById('cut');
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
})()"""


def opened(browser, url, **look):
    page = browser.open(url, **look)
    page.wait(IS_LOADED)
    return page


def answer(page, path):
    """The five names that the page shows for a picture."""
    page.evaluate("document.getElementById('best').replaceChildren()")
    page.choose(path)
    return page.wait(f'{FAULT} ? [{FAULT}] : {NAMES}.length && {NAMES}')


def cut_of(page):
    pixels = np.array(page.evaluate(CUT), np.uint8)
    side = int((len(pixels) // 4) ** 0.5)
    return pixels.reshape(side, side, 4)[..., :3]


def infer_names(path, weights, capsys):
    capsys.readouterr()
    assert infer.main([str(path), '-w', str(weights), '--format', 'json']) == 0
    return [found['name'] for found in json.loads(capsys.readouterr().out)[0]['top']]


def compare_in_chromium(page, archive, photo, folder, capsys):
    """The same first name from a JPEG, and the same five from its pixels as Python decodes them."""
    assert answer(page, photo)[0] == infer_names(photo, archive, capsys)[0]
    images.decode(photo.read_bytes()).save(folder / 'decoded.png')
    assert {*answer(page, folder / 'decoded.png')} == {*infer_names(folder / 'decoded.png', archive, capsys)}


@needs_chromium
def test_a_real_picture_served(browser, sites, cat, tmp_path, capsys):
    with served(sites / 'three') as url:
        page = opened(browser, url)
        compare_in_chromium(page, SMALL, cat, tmp_path, capsys)
        page.call('Network.emulateNetworkConditions', offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        for i, image in enumerate(cifar_images(3) if DATA.is_dir() else []):  # several in a row, and offline
            image.save(tmp_path / f'{i}.jpg')
            compare_in_chromium(page, SMALL, tmp_path / f'{i}.jpg', tmp_path, capsys)
        assert page.requests() == [url, f'{url}squeezenet.wasm', f'{url}model.sqz']
        n_byte = sum((sites / 'three' / name).stat().st_size for name in FILES)
        assert f'Loaded {n_byte:,} bytes' in page.evaluate('document.body.innerText')


@needs_chromium
def test_a_real_picture_in_one_file_from_the_disk(browser, sites, cat, tmp_path, capsys):
    page = opened(browser, (sites / 'one/index.html').as_uri())
    compare_in_chromium(page, SMALL, cat, tmp_path, capsys)
    assert len(page.requests()) == 1


@pytest.mark.long
@needs_chromium
@needs_data
def test_photos_with_published_weights(browser, published, tmp_path, capsys):
    with served(published) as url:
        page = opened(browser, url)
        for photo in photos():
            compare_in_chromium(page, published / 'model.sqz', photo, tmp_path, capsys)


@needs_chromium
def test_the_picture_is_the_one_of_python(browser, sites, cat, tmp_path):
    """Upright, on white, without its colour profile, of the size it has."""
    view = Classifier.open(SMALL).preprocessing
    turned = Image.Exif()
    turned[0x0112] = 6
    drawn(40, 30).save(tmp_path / 'turned.png', exif=turned)
    drawn(60, 50, 'RGBA').save(tmp_path / 'transparent.png')
    drawn(3000, 1200).save(tmp_path / 'large.png')  # more than one part of the canvas
    swapped = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    swapped = swapped.replace(b'rXYZ', b'b___').replace(b'bXYZ', b'rXYZ').replace(b'b___', b'bXYZ')
    drawn(50, 40).save(tmp_path / 'coloured.png', icc_profile=swapped)  # red for blue, where a profile counts
    page = opened(browser, (sites / 'one/index.html').as_uri())
    for name in ('turned', 'transparent', 'large', 'coloured'):
        path = tmp_path / f'{name}.png'
        assert len(answer(page, path)) == 5
        expected = view.cut(images.decode(path.read_bytes()))
        assert np.abs(cut_of(page).astype(int) - expected).max() <= 1 + (name == 'transparent'), name


@needs_chromium
def test_a_picture_of_the_address(browser, sites, cat):
    shutil.copy(cat, sites / 'three' / 'cat.jpg')
    with served(sites / 'three') as url:
        page = browser.open(f'{url}#picture=cat.jpg')
        assert len(page.wait(f'{NAMES}.length && {NAMES}')) == 5
        page.evaluate("location.hash = 'picture=none.jpg'")
        assert page.wait(FAULT) == 'none.jpg is missing (status 404): put it beside this page.'
        page.evaluate("location.hash = 'picture=//example.com/a.jpg'")
        page.wait(f"{FAULT}.includes('//example.com/a.jpg is of another site')")
        page.evaluate("location.hash = 'picture=//'")
        page.wait(f"{FAULT} == '// is not an address: give the name of a file.'")
        for name in ('a+b 100%.jpg', 'cat#1.jpg'):
            shutil.copy(cat, sites / 'three' / name)
            page.evaluate(f"location.hash = 'picture=' + encodeURIComponent('{name}')")
            assert len(page.wait(f"{FAULT} == '' && !document.querySelector('[aria-busy]') && {NAMES}")) == 5
        assert all(address.startswith(url) for address in page.requests())


@needs_chromium
def test_a_picture_that_is_dropped(browser, sites):
    page = opened(browser, (sites / 'one/index.html').as_uri())
    drop = """new Promise((done) => document.createElement('canvas').toBlob((blob) => {
        const dataTransfer = new DataTransfer();
        if (%s) dataTransfer.items.add(new File([blob], 'a.png'));
        done(document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true })));
    }))"""
    assert page.evaluate(drop % 'true') is False  # the browser does not leave the page for the picture
    assert len(page.wait(f'{NAMES}.length && {NAMES}')) == 5
    page.evaluate(drop % 'false')
    assert 'is not a file' in page.wait(FAULT)


@needs_chromium
def test_the_camera_by_keyboard(browser, sites):
    page = opened(browser, (sites / 'one/index.html').as_uri())
    focused = []
    for _ in range(2):
        page.press('Tab', 9)
        focused.append(page.evaluate('document.activeElement.id'))
    assert focused == ['choose', 'camera']
    page.press('Enter', 13)
    assert len(page.wait(f'{NAMES}.length && {NAMES}')) == 5
    assert page.evaluate("document.getElementById('camera').textContent") == 'Stop the camera'
    track = page.evaluate("(window.track = document.querySelector('video').srcObject.getTracks()[0]).readyState")
    page.press('Enter', 13)
    assert page.wait("document.getElementById('camera').textContent == 'Use the camera' && track.readyState") == 'ended'
    assert track == 'live' and page.evaluate(FAULT) == ''


@needs_chromium
@pytest.mark.parametrize('dark', [False, True])
def test_on_a_phone(browser, sites, cat, dark):
    page = opened(browser, (sites / 'one/index.html').as_uri(), width=390, dark=dark)
    assert len(answer(page, cat)) == 5
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    background = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (max(map(int, background[4:-1].split(','))) < 64) == dark
    first, percent = page.evaluate(
        "[document.querySelector('#best span'), document.querySelector('#best span + span')].map((e) => e.textContent)"
    )
    assert page.evaluate("document.querySelector('[aria-live]').textContent").startswith(f'{first}, {percent}, in ')


FAULTS_OF_FILES = {
    'cut short': (
        lambda raw: raw[:-100],
        'model.sqz: The checksum of the archive is wrong, it is cut short',
    ),
    'empty': (lambda raw: b'', 'model.sqz: The file does not begin as an archive does'),
    'missing': (None, 'model.sqz is missing (status 404): put it beside this page.'),
}


@needs_chromium
@pytest.mark.parametrize('fault', FAULTS_OF_FILES)
def test_faults_of_archives(browser, sites, tmp_path, fault):
    change, sentence = FAULTS_OF_FILES[fault]
    shutil.copytree(sites / 'three', tmp_path / 'site')
    archive = tmp_path / 'site' / 'model.sqz'
    raw = archive.read_bytes()
    archive.unlink()
    if change:
        archive.write_bytes(change(raw))
    with served(tmp_path / 'site') as url:
        page = browser.open(url)
        assert page.wait(FAULT).startswith(sentence)
        assert page.evaluate("document.getElementById('about').textContent") == 'The network is not loaded.'
        assert not page.evaluate(IS_LOADED)


@needs_chromium
def test_connections_that_end_early(browser, sites):
    broken = "fetch = async () => new Response(new ReadableStream({ pull: (to) => to.error(new TypeError('lost')) }))"
    with served(sites / 'three') as url:
        page = browser.open(url, script=broken)
        assert page.wait(FAULT) == 'squeezenet.wasm cannot be fetched: check the connection, and load this page again.'


@needs_chromium
def test_other_faults_of_loading(browser, sites):
    page = browser.open((sites / 'three/index.html').as_uri())
    assert 'serve this folder as its README.md says, or write the page with --single_file' in page.wait(FAULT)
    single = (sites / 'one/index.html').as_uri()
    page = browser.open(f'{single}#picture=cat.jpg')
    assert page.wait(FAULT).startswith('Browsers do not let a page read other files from the disk: choose the picture')
    page = browser.open(single, script='WebAssembly.validate = () => false')
    assert page.wait(FAULT).startswith('This browser has no WebAssembly with SIMD: use a newer one')
    page = opened(browser, single, script="navigator.mediaDevices.getUserMedia = async () => { throw new Error('no') }")
    page.evaluate("document.getElementById('camera').click()")
    assert page.wait(FAULT).startswith('The camera cannot be used: permit it for this page')


@needs_chromium
def test_faults_of_pictures(browser, sites, cat, tmp_path):
    page = opened(browser, (sites / 'one/index.html').as_uri())
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.png').write_text('no picture')
    (tmp_path / 'none.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>')
    for name in ('empty.jpg', 'text.png', 'none.svg'):
        assert answer(page, tmp_path / name) == [NO_PICTURE.format(name)]
    drawn(40000, 2).save(tmp_path / 'long.png')
    assert answer(page, tmp_path / 'long.png') == [
        'The picture has no pixels, or a side of more than 32,768: give another one.'
    ]
    assert page.evaluate("document.getElementById('answer').hidden")
    assert len(answer(page, cat)) == 5 and page.evaluate(FAULT) == ''
