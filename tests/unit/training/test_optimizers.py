"""Which parameters decay, which Muon moves, and that one optimizer's state restores exactly."""

import copy

import pytest
import torch
from torch import nn

from triune.training.config import Adafactor, AdamW, Muon
from triune.training.optimizers import MuonWithAdamW, build_optimizer


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.position = nn.Embedding(5, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        x = self.embedding(ids) + self.position.weight
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.norm(x))


def toy():
    torch.manual_seed(0)
    return Toy()


def train(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        ids = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def decays_of(optimizer, model):
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.3), Muon(weight_decay=0.3), Adafactor(weight_decay=0.3)])
def test_only_matrices_decay_and_nothing_is_left_out(config):
    model = toy()
    decays = decays_of(build_optimizer(config, model), model)
    assert set(decays) == {n for n, _ in model.named_parameters()}
    assert {n for n, d in decays.items() if d} == {
        "embedding.weight",
        "blocks.0.weight",
        "blocks.1.weight",
        "head.weight",
    }


def test_muon_moves_block_matrices_alone():
    model = toy()
    optimizer = build_optimizer(Muon(learning_rate=0.5, adamw_learning_rate=0.25), model)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {n for n, r in rates.items() if r == 0.5} == {"blocks.0.weight", "blocks.1.weight"}
    assert {r for n, r in rates.items() if n not in ("blocks.0.weight", "blocks.1.weight")} == {0.25}


def test_muon_with_adamw_equals_the_two_of_torch_side_by_side():
    model, twin = toy(), toy()
    ours = build_optimizer(Muon(learning_rate=0.02, adamw_learning_rate=0.003, weight_decay=0.1), model)
    blocks = [p for n, p in twin.named_parameters() if n.startswith("blocks") and p.ndim == 2]
    rest = [p for p in twin.parameters() if all(p is not b for b in blocks)]
    matrices = [p for n, p in twin.named_parameters() if n in ("embedding.weight", "head.weight")]
    others = [p for p in rest if all(p is not m for m in matrices)]
    muon = torch.optim.Muon(blocks, lr=0.02, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.003, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip

    class Both:
        def zero_grad(self):
            twin.zero_grad()

        def step(self):
            muon.step()
            adamw.step()

    assert train(model, ours, 5) == train(twin, Both(), 5)


@pytest.mark.parametrize("config", [AdamW(), Muon(), Adafactor()])
def test_a_restored_optimizer_goes_on_to_the_bit(config):
    model = toy()
    optimizer = build_optimizer(config, model)
    train(model, optimizer, 4)
    again = toy()
    again.load_state_dict(model.state_dict())
    restored = build_optimizer(config, again)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(again, restored, 4, start=4) == train(model, optimizer, 4, start=4)


def test_a_schedule_reaches_both_parts_even_after_a_restore():
    model = toy()
    optimizer = build_optimizer(Muon(), model)
    assert isinstance(optimizer, MuonWithAdamW)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 2)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
