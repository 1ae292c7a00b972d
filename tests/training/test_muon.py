import copy

import torch
from torch import nn

from kivla.training.muon import Muon, MuonWithAdamW


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(11, 8), "hidden": nn.Linear(8, 8), "out": nn.Linear(8, 1)})
    model["hidden"].bias.requires_grad_(False)
    return model


def step(model: nn.Module, optimizer, seed: int) -> float:
    tokens = torch.randint(11, (16, 4), generator=torch.Generator().manual_seed(seed))
    loss = (model["out"](model["hidden"](model["embed_tokens"](tokens)).tanh().mean(1)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_matrices_go_to_muon_and_everything_else_to_adamw():
    model = small_model()
    optimizer = MuonWithAdamW(model.named_parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert groups == [["hidden.weight", "out.weight"], ["embed_tokens.weight", "out.bias"]]


def test_it_learns():
    model = small_model()
    optimizer = MuonWithAdamW(model.named_parameters(), lr=0.02)
    losses = [step(model, optimizer, seed) for seed in range(60)]
    assert losses[-1] < losses[0] / 10, losses[::10]


def test_a_schedule_reaches_both():
    model = small_model()
    optimizer = MuonWithAdamW(model.named_parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0)
    schedule.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "learning rate is 0"


def test_going_on_from_a_saved_state_is_going_on():
    straight, resumed = small_model(), small_model()
    optimizer = MuonWithAdamW(straight.named_parameters(), lr=0.02)
    for seed in range(6):
        step(straight, optimizer, seed)
    first = MuonWithAdamW(resumed.named_parameters(), lr=0.02)
    for seed in range(3):
        step(resumed, first, seed)
    second = MuonWithAdamW(resumed.named_parameters(), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        step(resumed, second, seed)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    second.param_groups[0]["lr"] = 0.0
    before = resumed["hidden"].weight.clone()
    step(resumed, second, 6)
    assert torch.equal(before, resumed["hidden"].weight), "groups are shared after loading, too"


def test_the_closure_is_called_with_gradients():
    model = small_model()
    optimizer = MuonWithAdamW(model.named_parameters())

    def closure():
        loss = model["out"](model["embed_tokens"](torch.tensor([1]))).sum()
        loss.backward()
        return loss

    expected = model["out"](model["embed_tokens"](torch.tensor([1]))).item()
    assert optimizer.step(closure).item() == expected


def test_it_steps_as_the_librarys():
    """Which works in bfloat16, so that only three digits can agree."""
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (48, 16), (16, 48)]
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [weight.detach().clone().requires_grad_() for weight in ours]
    optimizers = Muon(ours, 0.01), torch.optim.Muon(theirs, 0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start = [weight.detach().clone() for weight in ours]
    for _ in range(3):
        for first, second in zip(ours, theirs, strict=True):
            first.grad = torch.randn(first.shape)
            second.grad = first.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for first, second, before in zip(ours, theirs, start, strict=True):
        moved, expected = (first - before).detach(), (second - before).detach()
        assert (moved - expected).norm() < 0.02 * expected.norm()
