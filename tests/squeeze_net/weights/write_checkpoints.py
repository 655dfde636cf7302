"""Write files of each kind that people make with PyTorch, which has to be installed, into a folder.

python write_checkpoints.py FOLDER
"""

import argparse
import datetime
import random
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Fire(nn.Module):
    """With the names that torchvision gives its layers."""

    def __init__(self, n_in, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1x1(x).relu(), self.expand3x3(x).relu()), 1)


class SqueezeNet(nn.Module):
    """Version 1.1, of 10 classes."""

    def __init__(self):
        super().__init__()
        fires = [Fire(64, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), Fire(256, 32, 128)]
        fires += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]
        first = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pools[0]]
        self.features = nn.Sequential(*first, *fires[:2], pools[1], *fires[2:4], pools[2], *fires[4:])
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.classifier(self.features(x)).flatten(1)


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.backbone = model


class Config(OrderedDict):
    pass


def checkpoints():
    """Name of a file -> what is saved in it."""
    model = SqueezeNet()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    state = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    beside = {
        'args': argparse.Namespace(out=Path('runs'), at=datetime.datetime.now(), dtype=torch.half, tags={1, 2}),
        'optimizer': optimizer.state_dict(),
        'scheduler': torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
        'best_acc1': torch.tensor(71.5),
        'best': np.float64(71.5),
        'rng': (random.getstate(), np.random.get_state(), torch.get_rng_state()),
        'config': Config(lr=0.1),
        'device': torch.device('cpu'),
        'epoch': 3,
    }
    flat = torch.cat([value.reshape(-1) for value in state.values()])
    pieces = flat.split([value.numel() for value in state.values()])
    shared = {name: piece.view(state[name].shape) for name, piece in zip(state, pieces, strict=True)}
    last = {
        name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for name, value in state.items()
    }
    return {
        'plain.pth': state,
        'data_parallel.pth': nn.DataParallel(model).state_dict(),
        'compiled.pt': torch.compile(model).state_dict(),
        'compiled_in_parallel.pt': OrderedDict((f'module._orig_mod.{name}', value) for name, value in state.items()),
        'averaged.pth': torch.optim.swa_utils.AveragedModel(model).state_dict(),
        'imagenet_example.pth.tar': {'state_dict': nn.DataParallel(model).state_dict(), 'arch': 'squeezenet1_1'}
        | beside,
        'tutorial.pt': {'model_state_dict': state, 'optimizer_state_dict': optimizer.state_dict(), 'loss': 0.5},
        'references.pth': {'model': state} | beside,
        'net.pth': {'net': nn.DataParallel(model).state_dict(), 'acc': 91.2, 'epoch': 5},
        'timm.pth.tar': {'state_dict': state, 'state_dict_ema': {name: 2 * state[name] for name in state}} | beside,
        'lightning.ckpt': {
            'state_dict': {f'model.{name}': value for name, value in state.items()}
            | {'criterion.weight': torch.ones(10)},
            'optimizer_states': [optimizer.state_dict()],
            'loops': {'fit_loop': {'state_dict': {}}},
            'callbacks': {'ModelCheckpoint': {'best_model_score': torch.tensor(0.5)}},
            'hyper_parameters': {'lr': 0.1, 'namespace': beside['args']},
        },
        'whole.pth': model,
        'whole_in_parallel.pth': nn.DataParallel(model),
        'whole_in_a_dictionary.pt': {'model': model} | beside,
        'whole_in_a_wrapper.pth': Wrapper(model),
        'subclass.pth': Config(state),
        'parameters.pth': {name: nn.Parameter(value) for name, value in state.items()},
        'half.bin': {name: value.half() for name, value in state.items()},
        'bfloat_half.pth': {name: value.bfloat16() for name, value in state.items()},
        'double.pth': {name: value.double() for name, value in state.items()},
        'channels_last.pth': last,
        'shared.pth': shared,
    }


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    for name, value in (found := checkpoints()).items():
        torch.save(value, folder / name)
    torch.save(found['references.pth'], folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save(found['whole.pth'], folder / 'whole_legacy.pth', _use_new_zipfile_serialization=False)
    torch.save(found['references.pth'], folder / 'protocol_4.pt', pickle_protocol=4)
    np.savez(folder / 'expected.npz', **{name: value.numpy() for name, value in found['plain.pth'].items()})
