"""The observer measures the logits it is given and never waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.managers.auxiliary_output import CommittedTokens
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_dynasor.certaindex import CERTAINTY_TOP_K
from sglang_dynasor.kernels.token_certainty import COLUMNS, token_certainty
from sglang_dynasor.managers.certainty_observer import CertaintyObserver, HostCertainty, read

BATCH, VOCABULARY = 5, 97
LARGE_VOCABULARY = 1500  # which the CPU, too, measures at once
vocabularies = pytest.mark.parametrize("vocabulary", [VOCABULARY, LARGE_VOCABULARY])


class NoSync(TorchDispatchMode):
    """Fails on an operation that makes the host wait for the device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal"), f"sync: {name}"
        result = function(*args, **(kwargs or {}))
        sources = [item.device for item in args if isinstance(item, torch.Tensor)]
        if isinstance(result, torch.Tensor) and any(source.type != "cpu" for source in sources):
            assert result.device.type != "cpu", f"copy to the host: {name}"
        return result


class Sink:
    """Records what a batch's commit handed over."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, np.ndarray, np.ndarray | None]] = []

    def __call__(
        self,
        reqs: Sequence[Any],
        commits: Sequence[CommittedTokens | None],
        certainty: HostCertainty,
    ) -> None:
        self.calls.append((reqs, commits, *read([certainty])[0]))


def sampling_info(greedy: bool = False, **fields: Any) -> Any:
    untouched = {
        "logit_bias": None,
        "has_custom_logit_processor": False,
        "has_watermark_candidates": False,
    }
    return SimpleNamespace(is_all_greedy=greedy, **{**untouched, **fields})


def logits_of(
    seed: int = 0, device: str = "cpu", vocabulary: int = LARGE_VOCABULARY
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, vocabulary, generator=generator).to(device)


def observe(logits: torch.Tensor, info: Any, tokens: torch.Tensor, sink: Sink | None = None) -> Any:
    observer = CertaintyObserver(sink or Sink())
    return observer.after_sample(observer.before_grammar(logits, info), tokens)


def test_it_is_active_only_when_switched_on() -> None:
    observer = CertaintyObserver(Sink())
    assert not observer.is_active(sampling_info())
    observer.active = True
    assert observer.is_active(sampling_info())


@vocabularies
def test_the_values_are_those_before_the_sampler_overwrote_the_logits(vocabulary: int) -> None:
    logits = logits_of(vocabulary=vocabulary)
    before = logits.clone()
    sink = Sink()
    observer = CertaintyObserver(sink)
    state = observer.before_grammar(logits, sampling_info())
    assert torch.equal(logits, before)
    logits.zero_()
    tokens = torch.zeros(BATCH, dtype=torch.int32)
    host = observer.after_sample(state, tokens).copy_to_host(torch.clone)
    batch, commits = SimpleNamespace(reqs=["a"] * BATCH), [None] * BATCH
    host.consume(batch, commits)
    ((reqs, given, values, chosen),) = sink.calls
    assert (reqs, given, chosen) == (batch.reqs, commits, None)
    np.testing.assert_array_equal(values, token_certainty(before, CERTAINTY_TOP_K).numpy())


def test_batches_read_together_are_those_read_alone() -> None:
    """Whether they were measured at once or have yet to be, with chosen tokens or without."""
    hosts = []
    for seed, vocabulary, greedy in (
        (1, 97, True),
        (2, 1500, False),
        (3, 97, False),
        (4, 97, True),
    ):
        logits = logits_of(seed, vocabulary=vocabulary)
        device = observe(logits, sampling_info(greedy), logits.argmax(1))
        hosts.append(device.copy_to_host(torch.clone))
    assert [host.measured for host in hosts] == [False, True, False, False]
    for host, (values, logprob) in zip(hosts, read(hosts), strict=True):
        ((own, own_logprob),) = read([host])
        np.testing.assert_allclose(values, own, atol=1e-6)
        assert (logprob is None) == (own_logprob is None)
        if logprob is not None:
            np.testing.assert_allclose(logprob, own_logprob, atol=1e-6)
    assert read([]) == []


@vocabularies
def test_a_greedy_batch_also_gives_the_chosen_tokens_log_probability(vocabulary: int) -> None:
    logits = logits_of(1, vocabulary=vocabulary)
    sink = Sink()
    device = observe(logits, sampling_info(greedy=True), logits.argmax(1), sink)
    device.copy_to_host(torch.clone).consume(SimpleNamespace(reqs=[]), [])
    expected = logits.log_softmax(1).max(1).values
    np.testing.assert_allclose(sink.calls[0][3], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"greedy": False},
        {"logit_bias": torch.zeros(1)},
        {"has_custom_logit_processor": True},
        {"has_watermark_candidates": True},
    ],
)
def test_no_chosen_log_probability_where_the_logits_may_be_changed(changed: dict[str, Any]) -> None:
    logits = logits_of()
    assert (
        observe(logits, sampling_info(**{"greedy": True, **changed}), logits.argmax(1))
    ).chosen_logit is None


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@vocabularies
def test_nothing_in_it_waits_for_the_device(
    greedy: bool, dtype: torch.dtype, vocabulary: int
) -> None:
    # On the meta device there is no data: reading a value or copying it off raises, too.
    for device in ("cpu", "meta"):
        logits = logits_of(device=device, vocabulary=vocabulary).to(dtype)
        tokens = torch.zeros(BATCH, dtype=torch.int64, device=device)
        with NoSync():
            output = observe(logits, sampling_info(greedy), tokens)
        assert output.rows.device.type == device
        assert output.measured == (device != "cpu" or vocabulary == LARGE_VOCABULARY)
        assert output.rows.shape == (BATCH, len(COLUMNS) if output.measured else vocabulary)


def test_the_sync_check_notices_a_sync() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        logits_of().max().item()
    with pytest.raises((AssertionError, NotImplementedError)), NoSync():
        logits_of(device="meta").cpu()


@vocabularies
def test_the_output_shares_no_memory_with_the_logits(vocabulary: int) -> None:
    logits = logits_of(vocabulary=vocabulary)
    start, end = logits.data_ptr(), logits.data_ptr() + logits.nbytes
    output = observe(logits, sampling_info(greedy=True), logits.argmax(1))
    for tensor in (output.rows, output.chosen_logit):
        assert not start <= tensor.data_ptr() < end
