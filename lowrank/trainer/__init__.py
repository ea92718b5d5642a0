"""Pruning inside `transformers.Trainer`.

teacher = copy.deepcopy(model).eval()
pruner = lowrank.Pruner(model, lowrank.Adaptive(density=0.3, gated_steps=300), moments=moments)
pruning = PrunerCallback(pruner)
checkpoint = pruning.resume(args.output_dir)    # None at the first start
trainer = DistillingTrainer(pruner.model, args, train_dataset=data, callbacks=[pruning],
                            optimizers=(pruning.optimizer(args), None), teacher=teacher)
trainer.train(resume_from_checkpoint=checkpoint)
trainer.save_model("small")                     # import lowrank.auto; AutoModel...from_pretrained

The gated steps are the first of the training's; after the last of them the model is projected and
compacted in place, and the remaining steps are its recovery. Accumulation, autocast, the rates'
schedule, logs, evaluation and checkpoints are the Trainer's own.
"""

from lowrank.trainer.callback import PrunerCallback
from lowrank.trainer.checkpoint import GATED_TYPE, STATE
from lowrank.trainer.distilling import DistillingTrainer

__all__ = ["GATED_TYPE", "STATE", "DistillingTrainer", "PrunerCallback"]
