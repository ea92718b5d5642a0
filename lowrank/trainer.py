"""Pruning inside `transformers.Trainer`, through a callback.

pruner = lowrank.Pruner(model, lowrank.Adaptive(density=0.3, gated_steps=300), moments=moments)
pruning = PrunerCallback(pruner)
checkpoint = pruning.resume(args.output_dir)    # None at the first start
trainer = Trainer(pruner.model, args, train_dataset=data, callbacks=[pruning],
                  optimizers=(pruning.optimizer(args), None))
trainer.train(resume_from_checkpoint=checkpoint)
trainer.save_model("small")                     # import lowrank.auto; AutoModel...from_pretrained

The gated steps are the first of the training's; after the last of them the model is projected and
compacted in place, and the remaining steps are its recovery. Accumulation, autocast, the rates'
schedule, logs, evaluation and checkpoints are the Trainer's own.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lowrank import auto
from lowrank.errors import ExportError, LowRankError
from lowrank.forms import described_layers
from lowrank.gated_embedding import GatedHead
from lowrank.pruner import Pruner

logger = logging.getLogger(__name__)

STATE = "lowrank-pruner.safetensors"
"""In every checkpoint: the pruner's own state."""
GATED_TYPE = "lowrank-with-gates"
"""Model type in the config.json of a checkpoint with gates. No loader knows it: by its real type
the model would be loaded with random weights where the file has gated factors."""


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
        gates = pruner.control.gate_parameters()
        self._has_gate_group = bool(gates)
        self._gradients = _Aside([*gates, *pruner.control.own_parameters])
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
        checkpoint: str | None = str(folder)
        if not (Path(folder) / "trainer_state.json").is_file():
            checkpoint = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
        if checkpoint is None:
            return None
        path = Path(checkpoint) / STATE
        if not path.is_file():
            raise ExportError(f"{path}: no such file; the checkpoint has no pruner in it")
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ExportError(f"{path}: not a whole safetensors file: {error}") from error
        self.pruner.load_state_dict(state)
        if self.pruner.finished:
            self._describe()
        _check_weights(self.pruner.model, Path(checkpoint))
        return checkpoint

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
        self._maybe_finish(state, kwargs["optimizer"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not self.pruner.finished and state.log_history:
            state.log_history[-1] |= {
                "density": float(self.pruner.expected_density().detach()),
                "target_density": self.pruner.target,
            }

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        state_dict = {name: t.contiguous() for name, t in self.pruner.state_dict().items()}
        save_file(state_dict, folder / STATE)
        path = folder / "config.json"
        if path.is_file() and not self.pruner.finished:
            config = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(config | {"model_type": GATED_TYPE}, indent=2), "utf-8")

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


def _check_weights(model: Any, checkpoint: Path) -> None:
    """Raise ExportError for tensors that the Trainer would pass over when it goes on: it loads what
    it finds, and transformers stores some models under other names, such as experts one by one."""
    stored: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= set(tensors.keys())
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in stored if name in state}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = [n for n, tensor in state.items() if id(tensor) not in there and n not in ignored]
    if missing or stored - state.keys():
        unexpected = sorted(stored - state.keys())
        raise ExportError(
            f"{checkpoint}: the Trainer cannot load the weights back: {len(missing)} missing, such "
            f"as {missing[:2]}, {len(unexpected)} unexpected, such as {unexpected[:2]}"
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
