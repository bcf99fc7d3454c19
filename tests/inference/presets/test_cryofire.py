"""The pose-only phase: what says z learns nothing, while encoder, poses and volume do."""

import torch
from moving import moving

from cryoprob.inference.build import image_power
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.schedule import Schedule


def test_z_is_frozen_while_poses_are_learned_first():
    stack = moving(box=16, n=40, dtype=torch.float32, seed=3).stack
    small = {"zdim": 2, "width": 16, "layers": 1, "batch": 8, "epochs": 60.0}
    plan = Schedule(**{**load("cryofire").plan, **small})
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    scene = Scene(stack, plan, image_power(stack), [], 40.0, 1, "C1", kind)
    built = load("cryofire").build(scene)
    guide = built.half.guide
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    assert built.algorithm.steps == 300  # 60 passes over 40 images, 8 at a time

    def changed():
        now = guide.state_dict()
        return {name for name, value in before.items() if not now[name].equal(value)}

    built.algorithm.step(built.state, stack)  # 50 of the 90 steps of the first phase
    moved = changed()
    assert not any(name.startswith("conformation.head") for name in moved)
    assert {"rotation.head.weight", "shift.head.weight", "volume.coefficients"} <= moved
    assert "rotation.encoder.top.0.weight" in moved  # shared: it learns from the poses
    built.algorithm.step(built.state, stack)
    assert "conformation.head.weight" in changed()
