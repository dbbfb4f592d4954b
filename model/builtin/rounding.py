"""Chooses scales and rounds weights so that a layer's output, not each weight, changes least.

Everything works on the Gram matrix of the layer's own quantized inputs on the calibration images, so
no gradients are needed: the loss of a row of weight errors `d` is `d G d^T`.
"""

import numpy as np

SHRINKS = np.linspace(1.0, 0.4, 31)
DAMPING = 0.01
SWEEPS = 20


def activation_scale(x, levels):
    """Scale of a non-negative activation that loses least squared error; clips rather than rounds
    coarsely where a few values are far out."""
    top = float(x.max())
    best = None
    for shrink in SHRINKS:
        scale = top * shrink / levels
        error = np.square(np.clip(np.rint(x / scale), 0, levels) * scale - x).mean()
        if best is None or error < best[0]:
            best = (error, scale)
    return best[1]


def refit(weights, gram, cross):
    """Weights that make up for errors in the inputs: least squares on the residual error `cross`
    (`[O, K]`, error times input), held near the given weights by the damping."""
    damped = gram + 5 * DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    return weights + np.linalg.solve(damped, cross.T).T


def optimal(weights, scales, gram, limit):
    """GPTQ with fixed scales `[O, 1]`, then coordinate descent on the same quadratic loss until no
    single step helps. Gives integers `[O, K]` and the loss of each row."""
    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    work, q = weights.copy(), np.zeros_like(weights)
    for j in range(weights.shape[1]):
        q[:, j] = np.clip(np.rint(work[:, j] / scales[:, 0]), -limit, limit)
        error = (work[:, j] - q[:, j] * scales[:, 0]) / factor[j, j]
        work[:, j:] -= error[:, None] * factor[j, j:]
    gradient = (q * scales - weights) @ damped
    for _ in range(SWEEPS):
        moved = False
        for j in range(weights.shape[1]):
            wish = np.rint(-gradient[:, j] / (damped[j, j] * scales[:, 0]))
            change = np.clip(q[:, j] + wish, -limit, limit) - q[:, j]
            if change.any():
                q[:, j] += change
                gradient += (change * scales[:, 0])[:, None] * damped[j]
                moved = True
        if not moved:
            break
    error = q * scales - weights
    return q.astype(np.int64), ((error @ gram) * error).sum(axis=1)


def quantize_weights(weights, gram, bits):
    """Narrow symmetric integers `[O, K]` and a scale for each row: of several shrunken ranges, the
    one whose optimal rounding loses least."""
    limit = 2 ** (bits - 1) - 1
    widest = np.abs(weights).max(axis=1, keepdims=True) / limit
    best_q, best_scale, best_loss = None, None, None
    for shrink in SHRINKS:
        scales = widest * shrink
        q, loss = optimal(weights, scales, gram, limit)
        if best_q is None:
            best_q, best_scale, best_loss = q, scales[:, 0].copy(), loss
            continue
        better = loss < best_loss
        best_q[better], best_loss[better] = q[better], loss[better]
        best_scale[better] = scales[better, 0]
    return best_q, best_scale
