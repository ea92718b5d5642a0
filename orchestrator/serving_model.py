"""Entry code of a logged model: loads the export with `lowrank` and answers tables of text.

Runs wherever MLflow loads the model, so it imports `lowrank` (shipped beside it) and nothing
else of this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

BATCH = 32


class CompressedModel(PythonModel):
    """Continues prompts, or labels or scores texts, depending on what was exported."""

    model: Any
    tokenizer: Any

    def load_context(self, context: Any) -> None:
        from lowrank.hf import load_pretrained, load_tokenizer

        folder = Path(context.artifacts["model"])
        self.model = load_pretrained(folder)
        self.tokenizer = load_tokenizer(folder)
        self.generates = hasattr(self.model, "lm_head") or self.model.can_generate()
        self.scores = getattr(self.model.config, "problem_type", None) == "regression"

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of output per row of input."""
        if self.generates:
            wanted = int((params or {}).get("max_new_tokens", 64))
            texts = [self._continue(prompt, wanted) for prompt in model_input["prompt"]]
            return pd.DataFrame({"text": texts})
        rows = [
            row
            for start in range(0, len(model_input), BATCH)
            for row in self._answers(model_input.iloc[start : start + BATCH])
        ]
        return pd.DataFrame(rows, columns=["score"] if self.scores else ["label", "score"])

    def _continue(self, prompt: str, max_new_tokens: int) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        if ids.shape[1] == 0:
            raise ValueError("a prompt must hold at least one token, got an empty one")
        limit = getattr(self.model.config, "max_position_embeddings", 1024)
        room = max(1, limit - max_new_tokens)
        with torch.inference_mode():
            out = self.model.generate(
                ids[:, -room:],
                attention_mask=torch.ones_like(ids[:, -room:]),
                max_new_tokens=min(max_new_tokens, limit - 1),
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        return self.tokenizer.decode(out[0, min(room, ids.shape[1]) :])

    def _answers(self, table: pd.DataFrame) -> list[tuple[Any, ...]]:
        """Score, or most likely class and its probability, of each row."""
        pair = table["text_pair"].tolist() if "text_pair" in table else None
        inputs = self.tokenizer(
            table["text"].tolist(), pair, padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self.model(**inputs).logits
        if self.scores:
            return [(score,) for score in logits.squeeze(-1).tolist()]
        best = logits.softmax(-1).max(-1)
        names = self.model.config.id2label
        return [
            (names[int(index)], float(score))
            for score, index in zip(best.values, best.indices, strict=True)
        ]


mlflow.models.set_model(CompressedModel())
