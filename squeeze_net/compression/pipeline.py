"""Prune, retrain, quantise, retrain, encode: each stage kept on disk, so that a compression can be stopped and resumed.

Source: Han et al., "Deep Compression" (2016), figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from tqdm import tqdm

import trainer
from squeeze_net import NETWORKS, labels, make_network
from squeeze_net.compression import plots, report
from squeeze_net.compression.calibrate import is_in_full
from squeeze_net.compression.fold import fold_model, scales_of
from squeeze_net.compression.plan import E5M4, FLOAT16, FLOAT32, KMEANS, MUON, RATE, SCAN, Plan
from squeeze_net.compression.prune import Pruning, by_sensitivity, prune, scan_sensitivity, weights_of
from squeeze_net.compression.quantise import TiedWeights, codebook_of, quantise_model, to_e5m4
from squeeze_net.compression.rate import quantise_by_rate
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.network import fill, fill_network, misfit, tensors_of
from squeeze_net.weights.record import Weights
from trainer import Config, device
from trainer.data.augmentation import Sizes
from trainer.data.datasets import Data, Stream
from trainer.errors import InputError
from trainer.files import atomic_write, free_path
from trainer.run import checkpoint
from trainer.run.records import SUMMARY, read_json, strict_json
from trainer.step.evaluate import evaluate
from trainer.step.optimizer import GradientHook

ABSORBED = 'absorbed'  # the stage that is quantised by rate, the scales being in the weights
LARGEST = {FLOAT16: 65504.0, E5M4: 63488.0}
PRUNING = (  # flags; the last for SCAN only
    *('distill', 'teacher', 'sparsity', 'prune_epoch', 'prune_lr', 'prune_optimizer', 'prune_muon_lr'),
    'drop',
)
CODING = ('quantise', 'rate', 'step', 'calibration', 'bits', 'initialisation')  # flags of what comes before retraining
QUANTISING = (*CODING, 'quantise_epoch', 'quantise_lr')  # flags of that stage
SHAPING = (  # those of all stages
    *('dataset', 'limit', 'size', 'preprocess', 'batch', 'pad', 'mixup', 'smoothing', 'weight_decay'),
    *('precision', 'seed'),
)


@dataclass
class Stage:
    """What a stage left of the network.

    Attributes:
        name: 'trained', 'pruned', 'quantised', or 'archived'.
        accuracy: on the test images.
        n_byte: of the weights: 4 a parameter, then 4 a weight that is not zero, then bits of codes and 4-bit gaps, then
            the archive itself.
    """

    name: str
    accuracy: float
    n_byte: int


def stages_of(target: Path) -> Path:
    """The folder of the stages of an archive, from which an interrupted compression goes on."""
    return target.with_name(f'{target.name}.stages')


class Compression:
    """A network on its way into an archive.

    Args:
        source: weights of a network of `NETWORKS`.
        target: the archive to write; stages are kept in the folder `<target>.stages` beside it.
        plan: what is done to it.
        config: data, size, batch, precision, device of retraining and tests.
        data: as `trainer.datasets.load` gives it.
        teacher: of --distill; None: the source.
    Raises:
        InputError: a network that is not known, or other classes or images than the data's.
    """

    def __init__(
        self,
        source: Weights,
        target: Path,
        plan: Plan,
        config: Config,
        data: Data | Stream,
        teacher: Weights | None = None,
    ) -> None:
        self.source, self.target, self.plan, self.config, self.data = source, target, plan, config, data
        network = source.metadata.network
        if network is None:
            raise InputError(str(misfit(source.tensors)))
        if network not in NETWORKS or source.metadata.n_class is None:
            raise InputError(f'the weights do not tell their network: give --network, one of {", ".join(NETWORKS)}')
        if source.metadata.n_class != data.n_class:
            raise InputError(f'the network has {source.metadata.n_class} classes, the data {data.n_class}')
        own = source.metadata.classes
        if own is not None and (i := labels.first_other(data.classes, own)) is not None:
            raise InputError(
                f'the network knows other classes than the data, or in another order: class {i} is {own[i]!r}, '
                f'not {data.classes[i]!r}'
            )
        self.network = network
        self.teacher = source if teacher is None else teacher
        self.folder = stages_of(target)
        self.stages: list[Stage] = []

    def run(self) -> list[Stage]:
        """All stages; those already done are read from the disk."""
        model = self._model(self.source)
        if self.plan.sparsity != SCAN:
            self.plan.sparsities(model)
        self.plan.bits_of(model)  # both complain before anything is trained
        pruning = PRUNING if self.plan.sparsity == SCAN else PRUNING[:-1]
        self._check_stage('pruned', pruning)
        self._check_stage('quantised', pruning + QUANTISING)
        if self.plan.quantise != KMEANS:
            self._check_stage(self._rate_stage, pruning + CODING)
        self._add_stage('trained', model, 4 * self.source.n_parameters)
        model = self._prune(model)
        model = self._quantise(model)
        self._archive(model)
        return self.stages

    def scan_only(self) -> None:
        """How much each layer can be pruned, as a picture and a table."""
        model = self._model(self.source)
        self.folder.mkdir(parents=True, exist_ok=True)
        full = self.accuracy(model)
        scan = self.scan(model, full)
        print(report.scan_table(scan, full, by_sensitivity(scan, full, self.plan.drop)))

    def _check_stage(self, stage: str, flags: Sequence[str]) -> None:
        """Refuse a stage on the disk that was made with other flags, from other data or of another network."""
        wanted = {name: getattr(self.plan, name) for name in flags} | self._conditions()
        path, kept = self.folder / f'{stage}.json', self.folder / 'results' / stage
        earlier = read_json(path) if kept.exists() and path.exists() else wanted
        for name, value in wanted.items():
            if (
                earlier.get(name, getattr(Plan, name, getattr(Config, name, None))) != value
            ):  # a new flag is what it was before there was one
                what = name.removeprefix('the ') if name.startswith('the ') else f'--{name}, {earlier.get(name)}'
                raise InputError(
                    f'{kept} was made with another {what}: remove it to make it again, or choose another -o'
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, 'w') as file:
            file.write(strict_json(wanted))

    def _conditions(self) -> dict[str, Any]:
        """What results depend on besides the plan."""
        flags = {name: getattr(self.config, name) for name in SHAPING}
        teacher = None if self.teacher is self.source else _digest(self.teacher)
        data = [self.data.source, *self.data.checksums().values()]
        return flags | {'the data': data, 'the weights': _digest(self.source), 'the teacher': teacher}

    # ---- stages ----

    def _prune(self, model: chainer.Chain) -> chainer.Chain:
        plan = self.plan
        if plan.sparsity == SCAN:
            sparsities = by_sensitivity(self.scan(model, self.stages[0].accuracy), self.stages[0].accuracy, plan.drop)
        else:
            sparsities = plan.sparsities(model)
        n_iteration = plan.prune_epoch * len(self.data.train.labels) // self.config.batch
        if plan.prune_epoch:
            hook = Pruning(sparsities, n_iteration=n_iteration // 2)  # the second half trains what is left
            settings: dict[str, Any] = {'lr': plan.prune_lr, 'optimizer': plan.prune_optimizer}
            if plan.prune_optimizer == MUON:
                settings['muon_lr'] = plan.prune_muon_lr
            model = self._retrain('pruned', model, plan.prune_epoch, hook, settings)
        else:
            for name, parameter in weights_of(model).items():
                prune(parameter, sparsities[name])
        n_nonzero, n_other = self._counts(model)
        self._add_stage('pruned', model, 4 * (sum(n_nonzero.values()) + n_other))
        return model

    def _quantise(self, model: chainer.Chain) -> chainer.Chain:
        plan = self.plan
        bits = plan.bits_of(model)
        host = chainer.get_device('@numpy')
        self.pruned = {name: np.array(host.send(p.array)) for name, p in weights_of(model).items()}
        if plan.quantise == KMEANS:
            quantise_model(model, bits, plan.initialisation, self.config.seed)
        else:
            before = scales_of(model)
            self._quantise_by_rate(model, bits)
            for name, scale in scales_of(model).items():  # in the units of the codes, for the picture of both
                taken = np.divide(before[name], scale, out=np.ones_like(scale), where=scale != 0)
                self.pruned[name] *= taken[:, None, None]
            n_value = {name: np.unique(host.send(p.array)).size for name, p in weights_of(model).items()}
            bits = {name: max((n - 1).bit_length(), 1) for name, n in n_value.items()}
        if plan.quantise_epoch:
            print(f'quantised, before retraining: {self.accuracy(model):.2%}', flush=True)
            model = self._retrain('quantised', model, plan.quantise_epoch, TiedWeights(), {'lr': plan.quantise_lr})
        n_nonzero, n_other = self._counts(model)
        n_bit = sum(n * (bits[name] + 4) for name, n in n_nonzero.items())
        n_codebook = sum(4 << n for n in bits.values())
        self._add_stage('quantised', model, n_bit // 8 + n_codebook + 4 * n_other)
        return model

    @property
    def _rate_stage(self) -> str:
        """Weights take over the scales where no codebook is made for them before and nothing is trained afterwards."""
        return ABSORBED if self.plan.quantise == RATE and not self.plan.quantise_epoch else 'rate'

    def _quantise_by_rate(self, model: chainer.Chain, bits: Mapping[str, int]) -> None:
        """In place; or as an earlier call has left it."""
        plan, config = self.plan, replace(self.config, precision='float32')
        path = self.folder / 'results' / self._rate_stage / 'weights_last.npz'
        if path.exists():
            model.to_device('@numpy')
            checkpoint.load_model(path, model)
            return
        layers = weights_of(model)
        for name in (name for name, p in layers.items() if not is_in_full(p.array)):
            print(f'{name} has too many inputs to keep what they have in common: each counts for itself', flush=True)
        codebooks = None
        if plan.quantise != RATE:
            codebooks = {
                name: codebook_of(weights, bits[name], plan.initialisation, config.seed)
                for name, weights in self.pruned.items()
            }
        with config.using_precision(), tqdm(total=len(layers), desc='layers', disable=None, leave=False) as bar:
            images = self._calibration_images(model, config)
            quantise_by_rate(
                *(model, lambda: images, plan.rate, plan.step, codebooks, config.seed),
                absorb=self._rate_stage == ABSORBED,
                done=lambda name: bar.update(),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(path, model)

    def _calibration_images(self, model: chainer.Chain, config: Config) -> list[Any]:
        """Training images in batches, on the device, where the model is brought, too."""
        target = device.open_device(config.gpu)
        model.to_device(target)
        sizes = Sizes.of(config.size, getattr(model, 'fixed_size', False))
        view = self.data.pictures(sizes, config.preprocess, config.seed).train
        n_image = len(self.data.train.labels)
        chosen = np.random.default_rng(config.seed).permutation(n_image)[: self.plan.calibration]
        parts = (chosen[i : i + config.batch] for i in range(0, len(chosen), config.batch))
        return [view(np.sort(part), target)[0] for part in parts]

    def _archive(self, model: chainer.Chain) -> None:
        model.to_device('@numpy')
        print(f'{fold_model(model, self.config.size)} biases have no effect', flush=True)
        tensors, half = tensors_of(model), set()
        for name, tensor in sorted(tensors.items()):
            if self.plan.vectors == FLOAT32 or name.endswith(('/W', '/N')):
                continue
            if np.abs(tensor).max(initial=0) > LARGEST[self.plan.vectors]:
                print(f'{name} holds numbers too large for {self.plan.vectors}, and stays in float32', flush=True)
                continue
            half.add(name)
            if self.plan.vectors == E5M4 and np.ptp(tensor):  # what is constant takes no bytes
                tensors[name] = to_e5m4(tensor)
        self.coded = archive.save(Weights(tensors, self.source.metadata), self.target, frozenset(half))
        self.archived = archive.Archive(self.target.read_bytes()).weights().tensors
        fill(model, self.archived)
        self._add_stage('archived', model, self.target.stat().st_size)

    def _counts(self, model: chainer.Chain) -> tuple[dict[str, int], int]:
        """How many weights of each layer are not zero, and how many other parameters there are."""
        parameters = weights_of(model)
        n_nonzero = {name: int((p.array != 0).sum()) for name, p in parameters.items()}
        return n_nonzero, self.source.n_parameters - sum(p.size for p in parameters.values())

    # ---- what they need ----

    def _model(self, source: Weights) -> chainer.Chain:
        network = str(source.metadata.network)
        with self.config.using_precision():
            model = make_network(network, self.data.n_class, self.config.size)
        fill_network(model, network, source.tensors)
        return model

    def accuracy(self, model: chainer.Chain) -> float:
        """Top-1 on the test images, in float32."""
        config = replace(self.config, precision='float32')
        with config.using_precision():
            target = device.open_device(config.gpu)
            model.to_device(target)
            sizes = Sizes.of(config.size, getattr(model, 'fixed_size', False))
            view = self.data.pictures(sizes, config.preprocess).test
            n_test = len(self.data.test.labels)
            return evaluate(model, view, n_test, self.data.n_class, config.batch, target).accuracy

    def scan(self, model: chainer.Chain, full: float) -> dict[str, dict[float, float]]:
        """`scan_sensitivity`, kept on the disk layer by layer, and drawn beside the target.

        Args:
            full: accuracy of the model as it is.
        """
        path = self.folder / 'scan.json'
        kept = read_json(path) if path.exists() else {}
        rows = kept['accuracies'] if kept.get('conditions') == self._conditions() else {}
        scan = {name: {float(sparsity): a for sparsity, a in row.items()} for name, row in rows.items()}
        if len(scan) < (n_layer := len(weights_of(model))):
            print('trying how much each layer can be pruned', flush=True)
        with tqdm(total=n_layer, desc='layers', disable=None, leave=False) as bar:
            for name in scan_sensitivity(model, lambda: self.accuracy(model), full, scan):
                bar.update()
                if name not in rows:  # a scan of many images takes long enough to be stopped
                    accuracies = {name: {str(s): a for s, a in row.items()} for name, row in scan.items()}
                    with atomic_write(path, 'w') as file:
                        file.write(strict_json({'conditions': self._conditions(), 'accuracies': accuracies}))
        picture = free_path(self.target.with_name(f'{self.target.stem}_scan.png'))
        plots.draw_scan(scan, full, picture)
        print(f'drew {picture}', flush=True)
        return scan

    def _retrain(
        self, name: str, model: chainer.Chain, n_epoch: int, hook: GradientHook, settings: dict[str, Any]
    ) -> chainer.Chain:
        """Train with a hook on the gradients, or take what an earlier call has left.

        Args:
            settings: rates and optimizer, as a `Config` has them.
        """
        config = replace(
            self.config,
            epoch=n_epoch,
            schedule='cosine',
            run=name,
            save_path=str(self.folder),
            **settings,
        )
        if config.run_folder.exists():
            config = replace(config, resume='auto')
        summary = config.run_folder / SUMMARY
        if not (summary.exists() and read_json(summary).get('finished')):
            teacher = trainer.Teacher(self._model(self.teacher), self.plan.distill) if self.plan.distill else None
            outcome = trainer.train(model, self.data, config, hooks=[hook], teacher=teacher)
            if outcome.exit_code:
                raise Interrupted(outcome.exit_code)
        fresh = self._model(Weights(tensors_of(model), self.source.metadata))
        checkpoint.load_model(config.run_folder / 'weights_last.npz', fresh)
        return fresh

    def _add_stage(self, name: str, model: chainer.Chain, n_byte: int) -> None:
        stage = Stage(name, self.accuracy(model), n_byte)
        self.stages.append(stage)
        print(f'{name:10} {n_byte:>11,} bytes   test accuracy {stage.accuracy:.2%}', flush=True)

    def draw(self) -> list[Path]:
        """The pictures of `plots.draw_all`, beside the target."""
        return plots.draw_all(self.report(), self.pruned, self.archived, self.target.with_suffix(''))

    def report(self) -> dict[str, Any]:
        """Stages and layers, as JSON holds them."""
        return {
            'network': self.network,
            'n_parameters': self.source.n_parameters,
            'plan': asdict(self.plan),
            'config': self.config.as_dict(),
            'data': self.data.source,
            'stages': [asdict(stage) for stage in self.stages],
            'layers': [report.layer_row(name, coded) for name, coded in self.coded.items()],
        }


def _digest(weights: Weights) -> str:
    return sha256(b''.join(tensor.tobytes() for tensor in weights.tensors.values())).hexdigest()


class Interrupted(Exception):
    """A stage was stopped; `exit_code` is what the process ends with."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
