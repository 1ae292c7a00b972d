"""Real-time chunking: guidance is the paper's, through the network; an expert trained with delays goes on from them."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, RealTimeChunking, count_learned_actions
from kivla.modeling_kivla.action_expert import TimeCondition
from kivla.modeling_kivla.flow_matching import time_embedding
from kivla.modeling_kivla.real_time_chunking import draw_delays, guidance_weight, guided_velocity, soft_mask
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_contract import assert_threads_give_what_one_gives
from tests.modeling_kivla.test_fast_paths import observation
from tests.modeling_kivla.test_modeling import CHUNK, STATE, WIDTH, make_batch, make_config, make_model

MAX_DELAY = 3
conditionings = pytest.mark.parametrize("conditioning", ["adarms", "concat"])
state_encodings = pytest.mark.parametrize("state_encoding", ["none", "continuous"])


def rest_of_chunks(num_previous=(4, 3), delay=(2, 1), **options) -> RealTimeChunking:
    rows = len(num_previous)
    previous = torch.randn(rows, CHUNK, WIDTH, generator=torch.Generator().manual_seed(7))
    return RealTimeChunking(previous, torch.tensor(num_previous), torch.tensor(delay), **options)


def inputs_for(model: KIVLAForActionPrediction) -> dict:
    """An observation, whose state, where there is one, changes nothing between two calls."""
    state = {"state": torch.ones(2, STATE)} if model.config.state_encoding == "continuous" else {}
    return observation(**state)


# ------------------------------------------------------------------------------------------------------ formulas
@pytest.mark.parametrize(("chunk_size", "delay", "horizon"), [(10, 2, 4), (8, 0, 3), (8, 3, 5), (6, 0, 0), (50, 7, 25)])
def test_the_soft_mask_is_the_papers(chunk_size, delay, horizon):
    """W_i of arXiv 2506.07339, step by step; what is left of the old chunk is H - s, as there."""
    expected = []
    for i in range(chunk_size):
        c = (chunk_size - horizon - i) / (chunk_size - horizon - delay + 1)
        falling = c * (math.exp(c) - 1) / (math.e - 1)
        expected.append(1.0 if i < delay else falling if i < chunk_size - horizon else 0.0)
    left = torch.tensor([chunk_size - horizon])
    by_default = soft_mask(torch.tensor([delay]), left, chunk_size)
    assert_close_relative(by_default[0], torch.tensor(expected), 4)
    longer = soft_mask(torch.tensor([delay]), torch.tensor([chunk_size]), chunk_size, horizon)
    assert torch.equal(longer, by_default), "a given horizon leaves the steps behind it free"


def test_steps_that_are_not_known_weigh_nothing():
    weights = soft_mask(torch.tensor([4, 0, 2]), torch.tensor([2, 0, 6]), 6, execution_horizon=1)
    assert weights[0].tolist() == [1, 1, 0, 0, 0, 0], "a delay that is longer than what is left holds all of it"
    assert not weights[1].any()
    assert (weights[2] > 0).tolist() == [True] * 5 + [False] and (weights[2].diff() <= 0).all()


def test_the_weight_of_the_guidance_is_the_papers():
    t = torch.tensor([1.0, 0.9, 0.5, 0.1], dtype=torch.float64)
    tau = (1 - t)[1:]
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    expected = [math.inf, *((1 - tau) / (tau * r2)).tolist()]
    for beta in (5.0, 2.1, 0.0):
        assert guidance_weight(t, beta).tolist() == pytest.approx([min(beta, weight) for weight in expected])


def test_closed_form_for_a_linear_velocity():
    """v = M x + b: Â = (1 - t M) x - t b, so that the pull is (1 - t M)ᵀ W (Y - Â)."""
    generator = torch.Generator().manual_seed(0)
    random = {"generator": generator, "dtype": torch.float64}
    size, t, beta = CHUNK * WIDTH, torch.tensor(0.7, dtype=torch.float64), 5.0
    matrix, bias = torch.randn(size, size, **random), torch.randn(size, **random)
    x, target = (torch.randn(2, CHUNK, WIDTH, **random) for _ in range(2))
    weights = torch.rand(2, CHUNK, WIDTH, **random)

    def velocity_of(x):
        return (x.flatten(1) @ matrix.T + bias).view_as(x)

    found = guided_velocity(velocity_of, x, t, target, weights, beta)
    jacobian = torch.eye(size, dtype=torch.float64) - t * matrix
    error = weights.flatten(1) * (target.flatten(1) - (x.flatten(1) @ jacobian.T - t * bias))
    weight = min(beta, float(t / (1 - t) * ((1 - t) ** 2 + t**2) / t**2))
    assert_close_relative(found.flatten(1), velocity_of(x).flatten(1) - weight * error @ jacobian, what="velocity")


# ------------------------------------------------------------------------------------------------------- guidance
@conditionings
@state_encodings
def test_the_guidance_is_the_finite_difference_through_the_expert(conditioning, state_encoding):
    """In float64, against (Â(x + ε) - Â(x - ε)) / 2ε for every value of the chunk; not against an identity."""
    model = make_model(state_encoding=state_encoding, expert_config={"time_conditioning": conditioning}).double()
    inputs = inputs_for(model)
    x, state = inputs.pop("noise").double(), inputs.pop("state", None)
    target = rest_of_chunks().previous.double()
    weights = rest_of_chunks().weights[..., None].double().expand_as(x)
    t = torch.tensor(0.6, dtype=torch.float64)
    with torch.no_grad():
        prefix = model.encode_prefix(**inputs)
        layout = model.expert.suffix_layout(prefix, CHUNK)
        condition = model.expert.time_condition(t.float()[None])

    def velocity_of(x):
        return model.expert(x, condition, prefix, layout, state)

    with torch.no_grad():
        found = guided_velocity(velocity_of, x, t, target, weights, 5.0)
        error = weights * (target - (x - t * velocity_of(x)))
        pull, epsilon = torch.zeros_like(x), 1e-5
        for i in range(CHUNK):
            for j in range(WIDTH):
                shift = torch.zeros_like(x)
                shift[:, i, j] = epsilon
                after, before = ((x + s) - t * velocity_of(x + s) for s in (shift, -shift))
                pull[:, i, j] = ((after - before) / (2 * epsilon) * error).sum((1, 2))
        weight = guidance_weight(t, 5.0)
        expected = velocity_of(x) - weight * pull
        identity = velocity_of(x) - weight * error
    assert found.dtype == torch.float64
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-6, f"off by {error:.1e} of the largest value"
    assert (identity - expected).abs().max() / expected.abs().max() > 1e-2, "the expert's Jacobian is next to nothing"


def guided_sampling(model: KIVLAForActionPrediction, rtc: RealTimeChunking, num_steps: int, noise, **inputs):
    """Euler steps as the paper writes them, with the whole Jacobian of every example."""
    x, tau = noise, 0.0
    while tau < 1 - 1e-6:

        def final(x, tau=tau):
            time = torch.full((len(x),), 1 - tau)
            velocity = -model(**inputs, actions=x, noise=x, timestep=time).velocity  # from noise to data
            return x + (1 - tau) * velocity, velocity

        jacobian = torch.autograd.functional.jacobian(lambda x, final=final: final(x)[0], x)  # (B, H, D, B, H, D)
        with torch.no_grad():
            estimate, velocity = final(x)
            error = rtc.weights[..., None] * (rtc.previous - estimate)
            pull = torch.einsum("bhd,bhdckl->ckl", error, jacobian)
            r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
            weight = rtc.max_guidance_weight if tau == 0 else min(rtc.max_guidance_weight, (1 - tau) / (tau * r2))
            x = x + (velocity + weight * pull) / num_steps
        tau += 1 / num_steps
    return x


@conditionings
@state_encodings
def test_guided_sampling_is_the_papers_loop(conditioning, state_encoding):
    model = make_model(state_encoding=state_encoding, expert_config={"time_conditioning": conditioning})
    inputs, rtc = inputs_for(model), rest_of_chunks(max_guidance_weight=2.5)
    found = model.sample_actions(**inputs, rtc=rtc, num_steps=4)
    assert_close_relative(found, guided_sampling(model, rtc, 4, **inputs), 1024, what="actions")
    ordinary = model.sample_actions(**inputs, num_steps=4)
    assert (found - ordinary).abs().max() > 0.1, "the guidance does next to nothing: this test says little"


def test_the_guidance_brings_the_chunk_to_the_old_one():
    """On the steps that are held; and where an example has no old chunk, it is the ordinary chunk."""
    model = make_model()
    inputs, rtc = observation(), rest_of_chunks(num_previous=(5, 0), delay=(3, 0))
    ordinary, guided = (model.sample_actions(**inputs, num_steps=10, **given) for given in ({}, {"rtc": rtc}))
    distance = [(chunk[0, :3] - rtc.previous[0, :3]).norm() for chunk in (ordinary, guided)]
    assert distance[1] < 0.3 * distance[0], distance
    assert_close_relative(guided[1], ordinary[1], what="actions of an example without an old chunk")
    nothing_known = replace(rtc, num_previous=torch.zeros(2, dtype=torch.long))
    assert torch.equal(model.sample_actions(**inputs, num_steps=10, rtc=nothing_known), ordinary)
    no_weight = replace(rtc, max_guidance_weight=0.0)
    assert_close_relative(model.sample_actions(**inputs, num_steps=10, rtc=no_weight), ordinary, what="actions")


def test_what_is_not_known_is_not_read():
    """Steps behind the known ones, and dimensions that a robot does not have."""
    model, inputs, rtc = make_model(), observation(), rest_of_chunks()
    mask = torch.ones(2, CHUNK, WIDTH, dtype=torch.bool)
    mask[..., -1] = False
    junk = rtc.previous.clone()
    junk[0, 4:], junk[1, 3:], junk[..., -1] = 100.0, float("nan"), -3.0
    junk[1, 3:, -1] = float("inf")
    chunks = [
        model.sample_actions(**inputs, action_mask=mask, rtc=replace(rtc, previous=previous), num_steps=3)
        for previous in (rtc.previous, junk)
    ]
    assert torch.equal(*chunks) and not chunks[0][..., -1].any()


def test_gradients_stay_where_they_belong():
    """No parameter gets one, whatever the caller's mode; and the chunk carries none out."""
    model, inputs, rtc = make_model().requires_grad_(True), observation(), rest_of_chunks()
    expected = model.sample_actions(**inputs, rtc=rtc, num_steps=2)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            prefix = model.encode_prefix(**{name: value for name, value in inputs.items() if name != "noise"})
            for given in (inputs, {"prefix": prefix, "noise": inputs["noise"]}):
                chunk = model.sample_actions(**given, rtc=rtc, num_steps=2)
                assert torch.equal(chunk, expected) and not chunk.requires_grad, mode
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_threads_do_not_disturb_each_other():
    model = make_model(rtc_max_delay=MAX_DELAY)
    inputs = observation()
    kinds = [None, rest_of_chunks(), rest_of_chunks((5, 5), (0, 3)), rest_of_chunks(method="trained")]
    calls = [lambda rtc=rtc: model.sample_actions(**inputs, rtc=rtc, num_steps=3) for rtc in kinds]
    assert_threads_give_what_one_gives(calls, repeats=4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["guidance", "trained"])
def test_the_compiled_expert_goes_on_in_the_same_way(method):
    """And is compiled for prompts of any length, not for each call."""
    plain = make_model(rtc_max_delay=MAX_DELAY)
    model = copy.deepcopy(plain)
    model.compile_expert()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    for lengths in ((4, 6), (5, 7), (8, 9)):
        inputs = observation(lengths=lengths)
        for rtc in (rest_of_chunks(method=method), rest_of_chunks((2, 5), (0, 3), method=method)):
            actions = model.sample_actions(**inputs, rtc=rtc, num_steps=2)
            expected = plain.sample_actions(**inputs, rtc=rtc, num_steps=2)
            assert_close_relative(actions, expected, 1024, what="actions")
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[1] <= 2, f"compiled again for each length: {graphs}"
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- training
@conditionings
@state_encodings
def test_without_a_delay_it_is_the_ordinary_model(conditioning, state_encoding):
    plain = make_model(state_encoding=state_encoding, expert_config={"time_conditioning": conditioning})
    delayed = copy.deepcopy(plain)
    delayed.config.rtc_max_delay = MAX_DELAY
    inputs = inputs_for(plain)
    state = {name: inputs[name] for name in ("state",) if name in inputs}
    batch = make_batch(noise=torch.randn(2, CHUNK, WIDTH), timestep=torch.tensor([0.2, 0.9]), **state)
    with torch.no_grad():
        expected, found = plain(**batch), delayed(**batch, delay=torch.zeros(2, dtype=torch.long))
    assert_close_relative(found.velocity, expected.velocity, what="velocity")
    assert_close_relative(found.flow_loss, expected.flow_loss, what="flow loss")
    rtc = rest_of_chunks(delay=(0, 0), method="trained")
    assert_close_relative(delayed.sample_actions(**inputs, rtc=rtc), plain.sample_actions(**inputs), what="actions")


@conditionings
@state_encodings
def test_given_actions_have_flow_time_0(conditioning, state_encoding):
    """Against an expert that is told the time of every token by itself."""
    model = make_model(
        state_encoding=state_encoding, expert_config={"time_conditioning": conditioning}, rtc_max_delay=MAX_DELAY
    )
    config, expert = model.config.expert_config, model.expert
    has_state = state_encoding == "continuous"
    state = {"state": torch.randn(2, STATE)} if has_state else {}
    batch = make_batch(noise=torch.randn(2, CHUNK, WIDTH), timestep=torch.tensor([0.3, 0.8]), **state)
    delay = torch.tensor([2, 1])
    with torch.no_grad():
        found = model(**batch, delay=delay).velocity
        ours = ("actions", "noise", "timestep", "state", "labels")
        prefix = model.encode_prefix(**{name: value for name, value in batch.items() if name not in ours})
        time = batch["timestep"][:, None].repeat(1, CHUNK)  # (B, H)
        for row, d in enumerate(delay):
            time[row, :d] = 0.0
        noisy = time[..., None] * batch["noise"] + (1 - time[..., None]) * batch["actions"]
        if has_state and conditioning == "adarms":  # the state token has the noisy actions' time
            time = torch.cat([batch["timestep"][:, None], time], dim=1)
        embedding = time_embedding(time.flatten(), config.hidden_size, config.min_period, config.max_period)
        embedding = embedding.unflatten(0, time.shape)
        condition = None
        if conditioning == "adarms":
            silu = torch.nn.functional.silu
            condition = silu(expert.time_mlp_out(silu(expert.time_mlp_in(embedding))))
        layout = expert.suffix_layout(prefix, CHUNK)
        expected = expert(noisy, TimeCondition(embedding, condition, None), prefix, layout, state.get("state"))
    assert_close_relative(found, expected, what="velocity")


def test_the_loss_is_over_the_actions_after_the_delay():
    n = 2
    model, batch = make_model(rtc_max_delay=MAX_DELAY, num_flow_samples=n), make_batch()
    mask = torch.ones(2, CHUNK, WIDTH, dtype=torch.bool)
    mask[1, 3:] = False
    mask[0, :, -1] = False
    noise, time, delay = torch.randn(n * 2, CHUNK, WIDTH), torch.rand(n * 2), torch.tensor([0, 3, 2, 1])
    draws = {"noise": noise, "timestep": time, "delay": delay}
    with torch.no_grad():
        out = model(**batch, action_mask=mask, **draws)
        total = count = 0.0
        for draw in range(n):
            for example in range(2):
                row = 2 * draw + example
                for step in range(int(delay[row]), CHUNK):
                    for d in range(WIDTH):
                        if mask[example, step, d]:
                            target = noise[row, step, d] - batch["actions"][example, step, d]
                            total, count = total + (out.velocity[row, step, d] - target) ** 2, count + 1
        assert_close_relative(out.flow_loss, total / count, what="flow loss")
        counted = count_learned_actions(mask, delay).sum()
        assert float(counted) == count / n
        twice = model(**batch, action_mask=mask, **draws, num_supervised_actions=2 * counted)
        assert_close_relative(2 * twice.flow_loss, out.flow_loss, what="flow loss of half a step")
        # The noise of given actions is never seen
        other = torch.where(torch.arange(CHUNK)[:, None] < delay[:, None, None], noise + 1, noise)
        assert torch.equal(model(**batch, action_mask=mask, **{**draws, "noise": other}).velocity, out.velocity)
    assert torch.equal(count_learned_actions(mask), mask.sum((1, 2)))


def test_delays_are_drawn_evenly():
    delays = draw_delays(4000, MAX_DELAY)
    counts = delays.bincount()
    assert len(counts) == MAX_DELAY + 1 and (counts - 1000).abs().max() < 150, counts
    model, batch = make_model(rtc_max_delay=MAX_DELAY), make_batch()
    draws = {"noise": torch.randn(2, CHUNK, WIDTH), "timestep": torch.rand(2)}
    with torch.no_grad():
        losses = {float(model(**batch, **draws).flow_loss) for _ in range(20)}
    assert len(losses) > 3, "forward draws no delays"


def test_an_insulated_vlm_gets_no_gradient():
    model, batch = make_model(rtc_max_delay=MAX_DELAY).train(), make_batch()
    model(**batch).flow_loss.backward()
    assert all(parameter.grad is None for parameter in model.vlm.parameters())
    silent = [name for name, p in model.expert.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, silent


@pytest.mark.slow
@conditionings
def test_an_expert_that_was_trained_with_delays_goes_on_from_what_it_is_given(conditioning):
    """Chunks rise or fall, and nothing but their beginning tells which: a wrong guess is 0.8 off and more. The
    beginning stays bit for bit.
    """
    model = make_model(rtc_max_delay=MAX_DELAY, expert_config={"time_conditioning": conditioning})
    ramp = torch.linspace(0.2, 1.0, CHUNK)[:, None].expand(CHUNK, WIDTH)
    chunks = torch.stack([ramp, -ramp])
    batch = {name: value for name, value in make_batch().items() if name != "labels"}
    batch = {name: torch.cat([value[:1]] * 2) for name, value in batch.items()}  # one prompt for both
    model.config.num_flow_samples = 16
    optimizer = torch.optim.Adam(model.expert.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 300)
    torch.manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        model(**{**batch, "actions": chunks}).loss.backward()
        optimizer.step()
        schedule.step()
    prompt = {name: value for name, value in batch.items() if name != "actions"}
    for delay in (1, MAX_DELAY):
        rtc = RealTimeChunking(chunks, torch.tensor([CHUNK] * 2), torch.tensor([delay] * 2), "trained")
        for seed in range(3):
            found = model.sample_actions(**prompt, rtc=rtc, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(found[:, :delay], chunks[:, :delay]), "what was given has changed"
            error = (found - chunks).abs().max()
            assert error < 0.4, f"delay {delay}: it does not go on ({error:.2f} off)"


def test_given_actions_are_exact_and_hide_the_noise():
    model, inputs = make_model(rtc_max_delay=MAX_DELAY), observation()
    rtc = rest_of_chunks(num_previous=(4, 1), delay=(3, 2), method="trained")  # the second has less than its delay
    chunk = model.sample_actions(**inputs, rtc=rtc)
    assert torch.equal(chunk[0, :3], rtc.previous[0, :3]) and torch.equal(chunk[1, :1], rtc.previous[1, :1])
    noise = inputs.pop("noise").clone()
    noise[0, :3], noise[1, :1] = 5.0, -5.0
    assert torch.equal(model.sample_actions(**inputs, noise=noise, rtc=rtc), chunk)
    mixed = rest_of_chunks(num_previous=(4, 0), delay=(3, 0), method="trained")
    ordinary = model.sample_actions(**inputs, noise=noise)
    assert_close_relative(model.sample_actions(**inputs, noise=noise, rtc=mixed)[1], ordinary[1], what="actions")


def test_the_longest_delay_is_saved_with_the_policy(tmp_path):
    make_model(rtc_max_delay=MAX_DELAY).save_pretrained(tmp_path)
    loaded = KIVLAForActionPrediction.from_pretrained(tmp_path)
    assert loaded.config.rtc_max_delay == MAX_DELAY
    rtc = rest_of_chunks(method="trained")
    assert torch.equal(loaded.sample_actions(**observation(), rtc=rtc)[0, :2], rtc.previous[0, :2])


# ----------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("max_delay", [CHUNK, -1])
def test_a_longest_delay_that_makes_no_sense(max_delay):
    with pytest.raises(Exception, match=f"rtc_max_delay must be at least 0 and less than chunk_size = {CHUNK}, got"):
        make_config(rtc_max_delay=max_delay)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "'guidance' and 'trained', got 'magic'"),
        ({"previous": torch.zeros(2, CHUNK + 1, WIDTH)}, r"`previous` must be .* = \(2, 5, 3\), got \(2, 6, 3\)"),
        ({"previous": torch.full((2, CHUNK, WIDTH), torch.nan)}, "previous actions are not all finite"),
        ({"num_previous": torch.tensor([1, CHUNK + 1])}, "6 previous actions, but a chunk has 5"),
        ({"num_previous": torch.tensor([1])}, r"`num_previous` must have a whole number .* 2 examples; got \[1\]"),
        ({"delay": torch.tensor([0, -1])}, r"`delay` must have a whole number .* not negative.* got \[0, -1\]"),
        ({"delay": torch.tensor([0.0, 1.5])}, r"`delay` must have a whole number"),
        ({"delay": torch.tensor([0, CHUNK])}, "A delay of 5 steps leaves nothing of a chunk of 5 actions"),
        ({"execution_horizon": 4}, "execution_horizon = 4 with a delay of 2: a chunk has 5 .* between 0 and 3"),
        ({"execution_horizon": -1}, "execution_horizon = -1"),
        ({"execution_horizon": 1.5}, "execution_horizon must be a whole number, got 1.5"),
        ({"max_guidance_weight": -1.0}, "max_guidance_weight must be a number that is not negative, got -1.0"),
        ({"max_guidance_weight": float("nan")}, "max_guidance_weight must be"),
        ({"method": "trained"}, r"was not trained with delays \(rtc_max_delay = 0\).* --rtc_max_delay N"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model().sample_actions(**observation(), rtc=replace(rest_of_chunks(), **changes))


def test_longer_delays_than_those_of_the_training_are_refused():
    model = make_model(rtc_max_delay=1)
    with pytest.raises(ValueError, match=r"A delay of 2 steps, but this policy was trained with delays of up to 1"):
        model.sample_actions(**observation(), rtc=rest_of_chunks(method="trained"))
    no_rest = rest_of_chunks(num_previous=(3, 0), delay=(1, 2), method="trained")
    assert model.sample_actions(**observation(), rtc=no_rest).isfinite().all(), "there, nothing is to be held"


def test_delays_of_a_training_batch_are_checked():
    batch = make_batch()
    with pytest.raises(ValueError, match=r"`delay` must be \(2,\) whole numbers between 0 and rtc_max_delay = 0"):
        make_model()(**batch, delay=torch.tensor([0, 1]))
    model = make_model(rtc_max_delay=MAX_DELAY)
    for delay in (torch.tensor([0, MAX_DELAY + 1]), torch.tensor([0]), torch.tensor([0.5, 1.0])):
        with pytest.raises(ValueError, match="`delay` must be"):
            model(**batch, delay=delay)
    with pytest.raises(ValueError, match="how many actions are learned depends on the delays: give `delay`"):
        model(**batch, num_supervised_actions=7)
