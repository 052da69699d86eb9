"""The trainings of loops.py as Lightning and the Hugging Face Trainer run them, where they are installed.

Their loaders give only the numbers of the steps. The batch is gathered when its step begins, after the fault is planted.
"""

import importlib.metadata
import importlib.util
import tempfile
from typing import Any

import torch

from benchmarks.other_tools.loops import CLIP, EPOCHS, Tool, ToolRun


def lightning(run: ToolRun) -> None:
    """Trainer with anomaly detection, and early stopping that ends if the validation loss is not finite."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = run.model

        def training_step(self, _batch: Any, _number: int) -> torch.Tensor:
            loss = run.loss(run.begin())
            self.log("train_loss", loss)
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            run.end_step()

        def on_train_epoch_end(self) -> None:
            self.log("val_loss", run.end_epoch())

        def configure_optimizers(self) -> Any:
            return {"optimizer": run.adamw, "lr_scheduler": {"scheduler": run.schedule, "interval": "step"}}

    stopping = EarlyStopping("val_loss", patience=99, check_finite=True, check_on_train_epoch_end=True, verbose=True)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        gradient_clip_val=CLIP,
        detect_anomaly=True,
        callbacks=[stopping],
        **silent,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(range(run.steps)))  # type: ignore[arg-type]


def hugging_face(run: ToolRun) -> None:
    """Trainer with its defaults: clipping at 1, and a logged loss that leaves out non-finite values."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Stepping(Trainer):
        def compute_loss(self, *_: Any, **__: Any) -> torch.Tensor:
            return run.loss(run.begin())

    class Around(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.end_step()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            run.end_epoch()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=1,
            max_grad_norm=CLIP,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            seed=run.trial.seed + 7,
        )
        trainer = Stepping(
            run.model,
            arguments,
            train_dataset=[{"step": torch.tensor(each)} for each in range(run.steps)],  # type: ignore[arg-type]
            optimizers=(run.adamw, run.schedule),
            callbacks=[Around()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trainers() -> tuple[dict[str, Tool], list[str]]:
    """The trainers that can be imported, and the names of the others."""
    known = {"Lightning": ("pytorch_lightning", lightning), "HF Trainer": ("transformers", hugging_face)}
    found = {name: tool for name, (module, tool) in known.items() if importlib.util.find_spec(module)}
    return found, [name for name in known if name not in found]


def versions() -> str:
    """Versions of the installed tools."""
    names = [
        name for name in ("torch", "pytorch_lightning", "transformers", "accelerate") if importlib.util.find_spec(name)
    ]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
