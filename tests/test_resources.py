"""What a trial may be given, and whether it fits: pure functions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.dispatch.capacity import after, fits, fitting, more, remaining, shortage
from tuner.dispatch.devices import Held, twice
from tuner.errors import BadInput
from tuner.resources import FUNCTION, Resources, alternatives, chosen, described, from_plain, to_plain
from tuner.settings import Settings


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"ranks": 0}, "ranks=0: a trial needs a whole number of ranks"),
        ({"ranks": True}, "ranks=True"),
        ({"ranks": (3, 2)}, r"ranks=\(3, 2\): give a whole number, or \(fewest, most\)"),
        ({"ranks": (0, 2)}, r"ranks=\(0, 2\)"),
        ({"ranks": (1, 2, 3)}, r"ranks=\(1, 2, 3\)"),
        ({"cpus": -1}, "cpus=-1"),
        ({"cpus": float("nan")}, "cpus=nan"),
        ({"cpus": "2"}, "cpus='2'"),
        ({"gpus": 1.5}, r"gpus=1\.5: above 1 a rank takes whole GPUs"),
        ({"gpus": 0.5, "ranks": 2}, r"gpus=0\.5 with ranks=2: ranks of one trial cannot share a GPU"),
        ({"gpus": 0.5, "ranks": (1, 4)}, r"gpus=0\.5 with ranks=\(1, 4\)"),
        ({"memory": 0}, "memory=0"),
        ({"custom": {"disk": 0}}, "custom={'disk': 0}"),
        ({"custom": {"GPU": 1}}, r"custom=\{'GPU': \.\.\.\}: give it by its own argument"),
        ({"accelerator": "A100", "gpus": 0}, "accelerator='A100' with gpus=0"),
        ({"accelerator": ""}, "accelerator=''"),
        ({"gpus": float("inf")}, "gpus=inf"),
        ({"cpus": 1e-6}, "cpus=1e-06: Ray counts no less than 0.0001"),
        ({"custom": {"disk": 1e-6}}, "Ray counts no less than 0.0001"),
        ({"custom": {1: 1}}, r"custom=\{1: \.\.\.\}: the name of a Ray resource is text"),
        ({"custom": None}, "custom=None: give a dict of Ray resources"),
        ({"ranks": (1, 10**8)}, r"ranks=\(1, 100000000\): each number is an alternative; give at most 1000"),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        Resources(**fields)


def test_elastic_ranks_are_alternatives_with_the_most_first() -> None:
    given = [Resources(ranks=(2, 4), gpus=1), Resources(cpus=8, gpus=0)]
    assert [(one.count, one.gpus) for one in alternatives(given)] == [(4, 1), (3, 1), (2, 1), (1, 0)]
    assert alternatives(lambda params: given) == ()


@pytest.mark.parametrize("bad", [(), "2", [Resources(), {"ranks": 1}], 3])
def test_what_is_no_resources_is_refused(bad: Any) -> None:
    with pytest.raises(BadInput, match=r"resources=.*give tuner\.Resources"):
        alternatives(bad)
    with pytest.raises(BadInput, match=r"give tuner\.Resources"):
        Settings(resources=bad)


def test_a_function_sees_the_parameters_and_may_return_alternatives() -> None:
    (one,) = chosen(lambda params: Resources(cpus=params["width"] // 64), {"width": 256})
    assert one.cpus == 4
    assert len(chosen(lambda params: [Resources(gpus=1), Resources(gpus=0)], {})) == 2
    with pytest.raises(BadInput, match=r"asked for parameter 'depth'.*only lr, width is known.*space="):
        chosen(lambda params: Resources(cpus=params["depth"]), {"width": 1, "lr": 0.1})
    with pytest.raises(BadInput, match="resources=None: give"):
        chosen(lambda params: None, {})
    with pytest.raises(KeyError, match="mine"):  # its own
        chosen(lambda params: {}["mine"], {})


@pytest.mark.parametrize(
    "resources",
    [Resources(ranks=(1, 4), custom={"disk": 1}), [Resources(gpus=1, accelerator="A100"), Resources(gpus=0)]],
)
def test_resources_are_kept_as_plain_data(resources: Any) -> None:
    kept = json.loads(Settings(resources=resources).to_json())
    again = Settings.from_mapping(kept).resources
    assert alternatives(again) == alternatives(resources)


def test_a_function_is_not_kept_and_asked_for() -> None:
    assert to_plain(lambda params: Resources()) == FUNCTION
    with pytest.raises(BadInput, match=r"resources was a function, which is not stored; pass resources="):
        from_plain(FUNCTION)


def test_resources_in_words() -> None:
    assert described(Resources()) == "1 CPU, one GPU if there is one"
    assert described(Resources(ranks=(1, 4), cpus=2, gpus=1, accelerator="A100", memory=2**31)) == (
        "1 to 4 ranks, each 2 CPUs, 1 GPU A100, 2 GiB"
    )


def test_gpus_are_one_for_each_rank_where_the_cluster_has_some() -> None:
    assert Resources().resolved(True).gpus == 1
    assert Resources().resolved(False).gpus == 0
    assert Resources(gpus=2).resolved(False).gpus == 2
    assert Resources(accelerator="A100").resolved(False).bundle() == {
        "CPU": 1,
        "GPU": 1,
        "accelerator_type:A100": 0.001,
    }
    assert Resources(cpus=0, gpus=0).bundle()  # Ray knows no bundle of nothing


def test_an_accelerator_that_the_cluster_has_not_is_named_with_those_that_it_has() -> None:
    nodes = [{"CPU": 8, "GPU": 1, "accelerator_type:V100": 1}]
    bundle = Resources(gpus=1, accelerator="A100").bundle()
    assert "an accelerator 'A100', the cluster has 'V100' (1 node" in shortage(nodes, bundle, 1)


amounts = st.integers(0, 8)
clusters = st.lists(st.fixed_dictionaries({"CPU": amounts, "GPU": amounts}), min_size=1, max_size=4)
bundles = st.fixed_dictionaries({"CPU": st.integers(1, 4), "GPU": st.integers(0, 2)}).map(
    lambda one: {name: amount for name, amount in one.items() if amount}
)


@given(nodes=clusters, bundle=bundles, count=st.integers(0, 9))
def test_what_is_placed_is_taken_once_and_nothing_goes_below_zero(
    nodes: list[dict[str, int]], bundle: dict[str, int], count: int
) -> None:
    placed = min(count, fitting(nodes, bundle))
    left = after(nodes, (bundle, count))
    assert all(amount >= 0 for node in left for amount in node.values())
    for name in ("CPU", "GPU"):
        taken = sum(node[name] for node in nodes) - sum(node.get(name, 0) for node in left)
        assert taken == placed * bundle.get(name, 0)
    assert fitting(left, bundle) == fitting(nodes, bundle) - placed


@given(nodes=clusters, demands=st.lists(st.tuples(bundles, st.integers(1, 3)), min_size=1, max_size=3))
def test_as_many_trials_fit_as_can_be_placed_one_after_the_other(
    nodes: list[dict[str, int]], demands: list[Any]
) -> None:
    left: Any = nodes
    placed = 0
    for demand in demands:
        while fits(left, demand):
            left = after(left, demand)
            placed += 1
    assert more(nodes, demands) == placed


def test_what_is_held_on_a_node_that_has_gone_takes_nothing_from_the_others() -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 2.0}}
    held = [("a", {"CPU": 3}), ("gone", {"CPU": 2}), ("", {"CPU": 1})]
    assert remaining(nodes, held) == [{"CPU": 1.0}, {"CPU": 1.0}]


def test_a_whole_device_is_never_held_twice() -> None:
    def held(device: str, part: float, node: str = "n") -> Held:
        return Held(node=node, device=device, part=part)

    assert twice([held("0", 1), held("1", 1), held("0", 1, node="m")]) == []
    assert twice([held("0", 0.25)] * 4) == []
    assert twice([held("0", 1), held("0", 0.25)]) == [("n", "0")]
    assert twice([held("0", 1), held("0", 1)]) == [("n", "0")]
