"""The callback that drives a pruner in a Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from lowrank import auto
from lowrank.errors import LowRankError
from lowrank.forms import described_layers
from lowrank.gated_embedding import GatedHead
from lowrank.pruner import Pruner
from lowrank.shrinking import TIMES
from lowrank.trainer import checkpoint

logger = logging.getLogger(__name__)


class PrunerCallback(TrainerCallback):
    """Drives a pruner at the Trainer's optimizer steps.

    As in a loop by hand, gates are not part of gradient clipping, their rate does not follow the
    schedule of the learning rate, and the penalty counts once per optimizer step. The logged loss
    is without it.

    Args:
        pruner: New, or as it came from `resume`. Its `model` is what the Trainer is given.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self._has_gate_group = bool(pruner.control.gate_parameters())
        self._gradients = self._apart()
        self._ties = _declare_ties(pruner.model)

    def parameter_groups(self, args: Any) -> list[dict[str, Any]]:
        """For any Adam-like optimizer, at the rates of TrainingArguments.

        A method whose gates are in the optimizer keeps their group, empty, when they have left the
        model: the scheduler counts groups.
        """
        groups = self.pruner.parameter_groups(args.learning_rate, args.weight_decay)
        if self.pruner.finished and self._has_gate_group:
            groups.append({"params": [], "lr": self.pruner.control.gate_lr, "weight_decay": 0.0})
        return groups

    def optimizer(self, args: Any) -> torch.optim.Optimizer:
        """AdamW as TrainingArguments describe it; to be passed as `optimizers=(it, None)`."""
        return torch.optim.AdamW(
            self.parameter_groups(args),
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=args.device.type == "cuda",
        )

    def resume(self, folder: Path | str) -> str | None:
        """Bring pruner and model to the structure of a checkpoint, before the Trainer is made.

        Args:
            folder: A checkpoint, or the output folder of a training, whose last one counts.

        Returns:
            The checkpoint, for `Trainer.train(resume_from_checkpoint=...)`; None if there is none.

        Raises:
            ExportError: The checkpoint was not written with this callback, is damaged, or lacks
                tensors of the model.
            LowRankError: It belongs to another model or method.
        """
        found = checkpoint.find(Path(folder))
        if found is None:
            return None
        self.pruner.load_state_dict(checkpoint.read(found))
        if self.pruner.finished:
            self._describe()
        checkpoint.check_weights(self.pruner.model, found)
        self._gradients = self._apart()
        return str(found)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if model is not self.pruner.model:
            raise LowRankError(
                "the Trainer must be given the pruner's model, Trainer(pruner.model)"
            )
        if self.pruner.finished:
            return
        self._check(args, state)
        _check_groups(self.pruner, kwargs["optimizer"])
        self._gradients.watch()
        self._maybe_finish(state, kwargs["optimizer"])

    def _check(self, args: Any, state: Any) -> None:
        steps, gated = self.pruner.step_index, self.pruner.method.gated_steps
        if state.global_step != steps:
            raise LowRankError(
                f"the Trainer goes on from step {state.global_step}, the pruner from step {steps}: "
                "train(resume_from_checkpoint=...) takes what PrunerCallback.resume(...) returned, "
                "called before the Trainer was made"
            )
        if state.max_steps < gated:
            raise LowRankError(
                f"a training of {state.max_steps} steps ends before the {gated} gated steps do"
            )
        if args.world_size > 1 or args.n_gpu > 1:
            raise LowRankError(
                "parameters are replaced during training, which the Trainer's wrapper for several "
                "devices does not notice: use one, or a loop with accelerate (docs/loops.md)"
            )
        if args.fp16:
            raise LowRankError("loss scaling does not reach the gates: use bf16, not fp16")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.pruner.finished:
            return
        penalty = self.pruner.penalty()
        if isinstance(penalty, Tensor):
            penalty.backward()
        self._gradients.put_back()
        if self._has_gate_group:
            # the scheduler has scaled all groups; gates follow their own anneal
            kwargs["optimizer"].param_groups[-1]["lr"] = self.pruner.control.gate_lr

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # not at the step's end: by then the Trainer has dropped the gradients of the gates
        if not self.pruner.finished:
            self.pruner.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        self._maybe_finish(state, optimizer)
        if self.pruner.finished:
            return
        every = max(1, self.pruner.method.gated_steps // TIMES)
        if self.pruner.step_index % every == 0 and self.pruner.shrink(optimizer):
            self._gradients.leave()
            self._gradients = self._apart()
            self._gradients.watch()

    def _apart(self) -> _Aside:
        """The gradients of what is trained in its own way."""
        if self.pruner.finished:
            return _Aside([])
        control = self.pruner.control
        return _Aside([*control.gate_parameters(), *control.own_parameters])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not self.pruner.finished and state.log_history:
            state.log_history[-1] |= {
                "density": float(self.pruner.expected_density().detach()),
                "target_density": self.pruner.target,
            }

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoint.write(self.pruner, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._gradients.leave()
        if not self.pruner.finished:
            logger.warning("training ended at step %d, gates are still there", state.global_step)

    def _maybe_finish(self, state: Any, optimizer: Any) -> None:
        if self.pruner.finished or self.pruner.step_index < self.pruner.method.gated_steps:
            return
        self._gradients.leave()
        self.pruner.finish()
        _hand_over(optimizer, self.pruner)
        self._describe()
        # a model that is still too large must not be remembered as the best
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _describe(self) -> None:
        """Let `save_pretrained` write what `lowrank.auto` reads."""
        model: Any = self.pruner.model
        for name in self._ties:
            del model._tied_weights_keys[name]
        self._ties = []
        if described_layers(model):
            auto.attach(model)


class _Aside:
    """Keeps the gradients of some parameters out of the way of gradient clipping.

    Args:
        parameters: Whose gradients; those of all micro-batches of a step add up.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self._hooks: list[RemovableHandle] = []
        self._kept: dict[int, Tensor] = {}

    def watch(self) -> None:
        self.leave()
        self._hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self.parameters]

    def leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._kept = [], {}

    def put_back(self) -> None:
        for parameter in self.parameters:
            parameter.grad = self._kept.pop(id(parameter), None)

    def _take(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        kept = self._kept.get(id(parameter))
        self._kept[id(parameter)] = parameter.grad if kept is None else kept + parameter.grad
        parameter.grad = None


def _check_groups(pruner: Pruner, optimizer: Any) -> None:
    """Raise LowRankError unless the optimizer has the groups of `Pruner.parameter_groups`."""
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    wanted = [[id(p) for p in group["params"]] for group in pruner.parameter_groups(1.0)]
    if groups != wanted:
        raise LowRankError(
            "the optimizer does not have the pruner's parameter groups: pass "
            "optimizers=(pruning.optimizer(args), None) to the Trainer"
        )


def _hand_over(optimizer: Any, pruner: Pruner) -> None:
    """Let an optimizer go on with the small model, in place, for the scheduler holds on to it.

    Groups keep their rates. Parameters that are still there keep their moments.
    """
    new = [group["params"] for group in pruner.parameter_groups(1.0)]
    for number, group in enumerate(optimizer.param_groups):
        group["params"] = new[number] if number < len(new) else []
    there = {id(p) for group in new for p in group}
    for parameter in [p for p in optimizer.state if id(p) not in there]:
        del optimizer.state[parameter]


def _declare_ties(model: Any) -> list[str]:
    """Tell `save_pretrained` which parameters a gated head shares with its embedding.

    Returns:
        Their names, which mean nothing any more when the gates have left the model.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    ties = {
        f"{head}.{name}": names[id(parameter)]
        for head, module in model.named_modules()
        if isinstance(module, GatedHead)
        for name, parameter in module.named_parameters()
        if names[id(parameter)] != f"{head}.{name}"
    }
    if ties:
        # of this object, not of its class
        model._tied_weights_keys = dict(model._tied_weights_keys or {}) | ties
    return list(ties)
