"""
Skill against copying
=====================

Where little moves, repeating the frame is nearly right. One and the same loss is worse
than a copy in a still clip and far better in a lively one: skill says which.

.. alt: Above, the loss of copying grows with motion and crosses a predictor's flat line
   at 15 degrees. Below, the skill rises from far below 0, is 0 there and nears 1.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs


def turned(degrees):
    """Give the features of a frame: 9 tokens that have turned so far."""
    angles = torch.deg2rad(degrees + torch.linspace(0, 300, 9))
    return torch.stack([angles.cos(), angles.sin()], 1)


def loss(predicted, degrees):
    """Give the mean loss of one predicted frame."""
    total, count = fs.next_frame_loss(predicted, fs.pack_ragged([turned(degrees)]))
    return float(total) / count


motions = range(5, 61)
copies = [loss(turned(0), motion) for motion in motions]
losses = [loss(turned(motion + 15), motion) for motion in motions]
figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 5))
above.plot(motions, losses, label="a predictor that is 15 degrees off")
above.plot(motions, copies, label="copying the frame")
above.set(ylabel="next-frame loss, 1 - cosine")
above.legend()
below.plot(motions, [fs.copy_skill(*both) for both in zip(losses, copies, strict=True)])
below.set(xlabel="motion, degrees a frame", ylabel="skill (0: a copy)", ylim=(-3, 1.1))
