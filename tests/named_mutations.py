"""Changes that break a promise of the documentation: each must make a fast test fail (`make mutation`).

Name -> file, text that stands there once, and what comes in its place. Where the code moves on, so does the entry.
"""

NAMED: dict[str, tuple[str, str, str]] = {
    "the worst ridge is taken": (
        "fxfactor/factors/fit.py",
        "strength = min(_RIDGES, key",
        "strength = max(_RIDGES, key",
    ),
    "no images are held out for the ridge": (
        "fxfactor/factors/fit_to_outputs.py",
        "held = index % 4 == 3",
        "held = False",
    ),
    "sensitivity judges on the half it fitted to": (
        "fxfactor/planning/sensitivity.py",
        "yield sensitivity.judge(self.images[half:])",
        "yield sensitivity.judge(self.images[:half])",
    ),
    "a choice has one folding": (
        "fxfactor/planning/board.py",
        "_different(_foldings(part, priced, target))",
        "_different(_foldings(part, priced, target))[:1]",
    ),
    "what is beside the layers is not taken off the board": (
        "fxfactor/planning/board.py",
        "max(1.0, limit - beside.get(name, 0.0))",
        "limit",
    ),
    "one number of bits of additions knows what is beside another's": (
        "fxfactor/planning/board.py",
        "left[plan.join_bits].update(",
        "left[space.join_bits[0]].update(",
    ),
    "what rounding before additions loses does not count": (
        "fxfactor/planning/plans.py",
        "loss = sum(option.loss for option in chosen) + _loss_of_joins(errors, space, measure, join_bits)",
        "loss = sum(option.loss for option in chosen)",
    ),
    "a network that fits in another way is refused": (
        "fxfactor/finn/estimation.py",
        "for _ in range(_MOST_SPARED):",
        "for _ in range(0):",
    ),
    "what is short is spared where it costs most": (
        "fxfactor/finn/ways.py",
        "in sorted(found):",
        "in sorted(found, reverse=True):",
    ),
    "every worker measures all sites": (
        "fxfactor/planning/sensitivity.py",
        "frozenset(share) for share in shares if share)",
        "frozenset(work) for share in shares if share)",
    ),
    "candidates are judged on the half they were fitted to": (
        "fxfactor/planning/plans.py",
        "for part in judge.split(",
        "for part in fit.split(",
    ),
    "factors are taken over behind a site that differs": (
        "fxfactor/exploration/rung.py",
        "        if shapes[0] != shapes[1]:\n            break\n",
        "        if shapes[0] != shapes[1]:\n            continue\n",
    ),
    "rounding may make a layer worse": (
        "fxfactor/recovery/round_weights.py",
        "torch.where(gains.unsqueeze(-1), found, present)",
        "found",
    ),
    "no clipping is searched for": (
        "fxfactor/recovery/round_weights.py",
        "limits = torch.where(error < least, part * largest, limits)",
        "pass",
    ),
    "one step of conjugate gradients": (
        "fxfactor/factors/least_squares.py",
        "_CONJUGATE_GRADIENT_STEPS = 12",
        "_CONJUGATE_GRADIENT_STEPS = 1",
    ),
    "padding mode dropped from the branches": (
        "passes/legalize_grouped_convolutions.py",
        "            layer.padding_mode,\n",
        "",
    ),
    "factors that save nothing are taken": (
        "fxfactor/plan/ladder.py",
        "if after >= before:",
        "if after > before:",
    ),
    "memory limit ignored": (
        "fxfactor/factors/lockstep.py",
        "keep = sum(self.bytes) - self.bytes[batch] + used <= self.memory_limit",
        "keep = True",
    ),
    "a checkpoint is written in place": (
        "fxfactor/recovery/finetune.py",
        'with new_file(self.folder / _CHECKPOINT, "keeping the state of the training") as temporary:',
        "if temporary := self.folder / _CHECKPOINT:",
    ),
    "the same random state in every epoch": (
        "fxfactor/recovery/finetune.py",
        "torch.manual_seed(self.seed + number)",
        "torch.manual_seed(self.seed)",
    ),
    "the old folder is deleted before the new one is in place": (
        "fxfactor/files.py",
        "            os.replace(target, old)\n",
        "            shutil.rmtree(target)\n",
    ),
    "rows of the state file come in reverse": (
        "fxfactor/exploration/state_file.py",
        "order by rowid",
        "order by rowid desc",
    ),
    "a broken transaction is committed": (
        "fxfactor/storage/state_file.py",
        'self.connection.execute("rollback")',
        'self.connection.execute("commit")',
    ),
    "a budget overstepped by the solver's tolerance stands": (
        "fxfactor/planning/integer_program.py",
        "if all(sum(o.costs[name] for o in chosen) <= limit for name, limit in limits.items()):",
        "if True:",
    ),
    "equal points are kept on the front": (
        "fxfactor/exploration/pareto.py",
        "if not front or value(item) > value(front[-1]):",
        "if not front or value(item) >= value(front[-1]):",
    ),
    "a step of recovery that makes it worse is kept": (
        "fxfactor/recovery/guarded.py",
        "found.output_error < best.output_error",
        "found.output_error > best.output_error",
    ),
    "recovery is fitted to the images that judge it": (
        "fxfactor/recovery/guarded.py",
        "round_weights, original, graph, seen",
        "round_weights, original, graph, batches",
    ),
    "what a step did is not taken back": (
        "fxfactor/recovery/guarded.py",
        "value.copy_(before[key])",
        "pass",
    ),
    "a learned range exceeds the largest weight": (
        "fxfactor/quantization/weight_limits.py",
        "torch.minimum(limit.abs(), largest).clamp_min_(SMALLEST)",
        "limit.abs().clamp_min(SMALLEST)",
    ),
    "a tensor that is added has the bits of its layers": (
        "passes/quantize.py",
        "max(*wanted, self.residual_bits or 0) if added else max(wanted)",
        "max(wanted)",
    ),
    "a layer reads all bits of what is added": (
        "passes/quantize.py",
        "given in self.residual and quantizer_bits(given) > bits",
        "False",
    ),
    "a weight that jumps is not frozen": (
        "fxfactor/recovery/oscillations.py",
        'new = (memory["turned"] > most) & ~frozen',
        "new = torch.zeros_like(frozen)",
    ),
    "a trial of a learning rate leaves its weights": (
        "fxfactor/recovery/finetune.py",
        "tensor.copy_(value)",
        "pass",
    ),
    "one bit: weights keep the mean of their magnitudes": (
        "fxfactor/recovery/round_weights.py",
        "signs * (wanted / given).clamp_min(torch.finfo(torch.float32).tiny)",
        "weight",
    ),
    "knots of a curve change places": (
        "fxfactor/quantization/threshold_curve.py",
        "cast(Tensor, self.knots).sort().values",
        "cast(Tensor, self.knots).clone()",
    ),
}
