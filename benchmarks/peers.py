"""What people use today to get a mean hidden state of every text and layer, made as their docs say.

All read the same texts in the same batches of 32 in file order, padded on the right with a mask,
and average each text's tokens. They differ in how they come by the hidden states.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers

Encoding = Any


class UsualScript:
    """`output_hidden_states=True`, then NumPy."""

    needs: str | None = None  # a package that not everyone has

    def __init__(self, path: str, dtype: torch.dtype = torch.float32, batch: int = 32) -> None:
        self.batch = batch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"

    @property
    def kept(self) -> list[int]:
        """Which of transformers' `hidden_states` come out."""
        return list(range(self.model.config.num_hidden_layers + 1))

    @torch.no_grad()
    def __call__(self, texts: list[str], template: str) -> np.ndarray:
        """Mean over the prompt's tokens of every kept layer: `[text, layer, D]`."""
        if template == "chat":
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in texts
            ]
        pooled = []
        for start in range(0, len(texts), self.batch):
            batch = self.tokenizer(
                texts[start : start + self.batch],
                return_tensors="pt",
                padding=True,
                add_special_tokens=template != "chat",
            )
            pooled.append(self.pooled(batch))
        return np.concatenate(pooled)

    def pooled(self, batch: Encoding) -> np.ndarray:
        """One batch: `[B, layer, D]`."""
        # In a script's loop the last batch's output lives until the next one is there.
        self.output = self.model(**batch, output_hidden_states=True)
        mask = batch["attention_mask"].numpy()[:, :, None]
        states = self.output.hidden_states
        means = [(state.numpy() * mask).sum(1) / mask.sum(1) for state in states]
        return np.stack(means, 1)


class LayerList(UsualScript):
    """`output_hidden_states` with a list: every fourth layer, which is less than the others do."""

    @property
    def kept(self) -> list[int]:
        return super().kept[::4]

    def pooled(self, batch: Encoding) -> np.ndarray:
        output = self.model(**batch, output_hidden_states=self.kept)
        mean = masked_mean(batch["attention_mask"])
        return np.stack([mean(output.hidden_states[i]) for i in self.kept], 1)


class TorchHooks(UsualScript):
    """Forward hooks that average and keep no hidden state, on the model without its head."""

    def pooled(self, batch: Encoding) -> np.ndarray:
        mean, means = masked_mean(batch["attention_mask"]), []
        handles = [
            module.register_forward_hook(
                lambda _module, _args, out: means.append(
                    mean(out[0] if isinstance(out, tuple) else out)
                )
            )
            for module in parts(self.model)
        ]
        self.model.model(**batch, use_cache=False)
        for handle in handles:
            handle.remove()
        return np.stack(means, 1)


class Nnsight(UsualScript):
    """A trace that saves every layer's output."""

    needs = "nnsight"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        import nnsight

        self.nnsight, self.traced = nnsight, nnsight.NNsight(self.model)

    def pooled(self, batch: Encoding) -> np.ndarray:
        nnsight, model = self.nnsight, self.traced
        with model.trace(**batch, use_cache=False):
            out = nnsight.save([])
            out.append(model.model.embed_tokens.output)
            for layer in model.model.layers:
                out.append(layer.output)
            out.append(model.model.norm.output)
        mean = masked_mean(batch["attention_mask"])
        return np.stack([mean(states) for states in [*out[:-2], out[-1]]], 1)


class TransformerLens(UsualScript):
    """`run_with_cache` of a bridged model, with the residual stream as names filter."""

    needs = "transformer_lens"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(path, device="cpu", dtype=torch.float32)
        last = self.model.config.num_hidden_layers - 1
        blocks = [f"blocks.{i}.hook_out" for i in range(last)]
        self.names = ["embed.hook_out", *blocks, "ln_final.hook_out"]

    def pooled(self, batch: Encoding) -> np.ndarray:
        _, cache = self.bridge.run_with_cache(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            return_type=None,
            names_filter=lambda name: name in self.names,
        )
        mean = masked_mean(batch["attention_mask"])
        return np.stack([mean(cache[name]) for name in self.names], 1)


PEERS: dict[str, type[UsualScript]] = {
    "usual script": UsualScript,
    "layer list": LayerList,
    "torch hooks": TorchHooks,
    "nnsight": Nnsight,
    "TransformerLens": TransformerLens,
}


def installed(name: str) -> bool:
    needs = PEERS[name].needs
    return needs is None or find_spec(needs) is not None


def parts(model: Any) -> list[torch.nn.Module]:
    """Modules whose outputs are transformers' `hidden_states`."""
    return [model.model.embed_tokens, *model.model.layers[:-1], model.model.norm]


def masked_mean(mask: torch.Tensor) -> Callable[[torch.Tensor], np.ndarray]:
    weights = mask[:, :, None].float()
    return lambda states: ((states * weights).sum(1) / weights.sum(1)).numpy()
